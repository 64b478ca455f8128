// Plays the videos of all columns in step, with one set of controls.

const DRIFT = 0.1; // seconds by which two videos may differ

export class Player {
  constructor(bar, play, seek, position) {
    this.bar = bar;
    this.button = play;
    this.slider = seek;
    this.position = position;
    this.videos = [];
    this.wanted = false;
    play.addEventListener("click", () => this.toggle());
    seek.addEventListener("input", () => this.seek(Number(seek.value)));
  }

  // Plays these videos; the others follow the first.
  use(videos) {
    this.videos = videos;
    this.bar.hidden = !videos.length;
    this.button.textContent = videos.length > 1 ? "Play both" : "Play";
    if (!videos.length) return this.stop();
    const [first] = videos;
    this.slider.max = first.duration;
    first.onseeked = () => this.moved();
    first.onended = () => this.around();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.seek(0);
    this.wanted = !still;
    this.follow();
  }

  stop() {
    this.wanted = false;
    for (const video of this.videos) video.pause();
    this.videos = [];
    this.bar.hidden = true;
  }

  toggle() {
    this.wanted = !this.wanted;
    if (this.wanted && this.videos[0]?.ended) this.seek(0);
    this.follow();
  }

  follow() {
    const words = this.wanted ? "Pause" : "Play";
    this.button.textContent = this.videos.length > 1 ? `${words} both` : words;
    for (const video of this.videos) {
      if (!this.wanted) video.pause();
      else video.play().catch(() => {}); // fails if the video is removed while it starts
    }
    this.moves();
  }

  moves() {
    cancelAnimationFrame(this.frame);
    if (!this.wanted) return;
    this.moved();
    this.frame = requestAnimationFrame(() => this.moves());
  }

  seek(seconds) {
    for (const video of this.videos) video.currentTime = Math.min(seconds, video.duration);
    this.moved();
  }

  around() {
    if (!this.wanted) return;
    this.seek(0);
    this.follow();
  }

  moved() {
    const [first, ...others] = this.videos;
    if (!first) return;
    this.slider.value = first.currentTime;
    this.position.textContent = `${first.currentTime.toFixed(2)} of ${first.duration.toFixed(2)} s`;
    for (const other of others) {
      const apart = Math.abs(other.currentTime - first.currentTime);
      if (apart > DRIFT && !other.seeking) other.currentTime = first.currentTime;
    }
  }
}
