"""The polynomials that TeaCache publishes for Open-Sora 1.2, Latte-1 and Open-Sora-Plan 1.1, highest power first."""

PUBLISHED: tuple[tuple[float, ...], ...] = (
    (217.546007, -118.329252, 26.8662585, -0.0459364272, 0.0484426240),
    (-2464.34137, 308.044764, 80.7447667, -4.11385132, 0.111001402),
    (205943.668, -14875.9286, 306.085986, 1.31418080, 0.00239658469),
)
