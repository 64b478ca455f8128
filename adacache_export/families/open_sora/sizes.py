"""The sizes and durations that Open-Sora was trained with, and their names in the original.

Source: hpcaitech/Open-Sora v1.2.0, ``opensora/datasets/aspect.py``, which gives aspects and sizes with
the height first; here the width is first. All sizes of a name have about as many pixels. The aspect that the original
calls 50:27 is 2.08 to 1.
"""

from collections.abc import Mapping

from adacache_engines.bundle.manifest import VideoNames

# height to width, in the order of the sizes below
ORIGINAL_ASPECTS = "3:8 9:21 12:25 1:2 9:17 27:50 9:16 5:8 2:3 3:4 1:1 4:3 3:2 16:9 17:9 2:1 50:27"
HEIGHTS_AND_WIDTHS: Mapping[str, str] = {
    "144p": "117x312 125x291 133x277 135x270 139x262 141x260 144x256 151x241 156x234 166x221 192x192 221x165 235x156"
    " 256x144 263x139 271x135 277x132",
    "240p": "196x522 210x490 222x462 226x452 232x438 236x436 240x426 252x404 262x393 276x368 320x320 370x278 392x262"
    " 426x240 440x232 452x226 462x222",
    "360p": "294x784 314x732 332x692 340x680 350x662 352x652 360x640 380x608 392x588 416x554 480x480 554x416 588x392"
    " 640x360 660x350 678x340 692x332",
    "480p": "392x1046 420x980 444x925 452x904 466x880 470x870 480x854 506x810 522x784 554x738 640x640 740x555 784x522"
    " 854x480 880x466 906x454 924x444",
    "720p": "588x1568 628x1466 666x1388 678x1356 698x1318 706x1306 720x1280 758x1212 784x1176 832x1110 960x960 1108x832"
    " 1176x784 1280x720 1320x698 1358x680 1386x666",
    "1080p": "882x2352 942x2198 998x2080 1018x2036 1048x1980 1058x1958 1080x1920 1138x1820 1176x1764 1248x1664"
    " 1440x1440 1662x1246 1764x1176 1920x1080 1980x1048 2036x1018 2078x998",
    "2k": "1176x3136 1256x2930 1330x2770 1358x2716 1398x2640 1412x2612 1440x2560 1518x2428 1568x2352 1662x2216"
    " 1920x1920 2218x1664 2352x1568 2560x1440 2638x1396 2716x1358 2772x1330",
    "4k": "1764x4704 1886x4400 1996x4158 2036x4072 2096x3960 2118x3918 2160x3840 2276x3642 2352x3528 2494x3326"
    " 2880x2880 3326x2494 3528x2352 3840x2160 3958x2096 4072x2036 4156x1994",
}


def _turned(text: str, separator: str) -> tuple[str, str]:
    first, second = text.split(separator)
    return second, first


_ASPECTS = [":".join(_turned(aspect, ":")) for aspect in ORIGINAL_ASPECTS.split()]
NAMES = VideoNames(
    sizes={
        name: {
            aspect: (int(width), int(height))
            for aspect, (width, height) in zip(_ASPECTS, (_turned(size, "x") for size in sizes.split()), strict=True)
        }
        for name, sizes in HEIGHTS_AND_WIDTHS.items()
    },
    aspect="16:9",
    durations={  # 17 frames for each 2/3 of a second; the original also counts in units of 2 s
        "2s": 51,
        "4s": 102,
        "8s": 204,
        "16s": 408,
        "32s": 816,
        "1x": 51,
        "2x": 102,
        "4x": 204,
        "8x": 408,
        "16x": 816,
    },
    only_named_durations=True,
)
