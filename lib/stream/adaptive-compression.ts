/**
 * Decides for `--compress auto` whether to compress what goes out now, and how. Pure: it is told what happened, and
 * when.
 *
 * Compressing pays where the link holds us up and is slower than a codec. So time is cut into short windows. In a
 * window in which we mostly waited for the link, the link's rate is what went out; in any other the link is fast
 * enough, as far as anybody can tell. A codec gains what it makes of the bytes, but not more than its own speed allows.
 * A link that was slow once is tried again after a while, by sending without compression: while we compress, it cannot
 * be seen to be fast.
 */
import { type CodecName, codecNames } from '../format/enums.ts'

/** What one core compresses, in bytes a ms, and what part of them is left. */
export interface Skill {
  rate: number
  left: number
}

const MIB = 2 ** 20
const WINDOW_MS = 25
/** A link holds us up if at least this part of a window is spent waiting for it. */
const HELD_UP = 0.5
/**
 * A link must hold us up in so many windows in a row before it counts as slow, and the best of them is its rate: on a
 * busy host a receiver hesitates, and then is fast again.
 */
const BELIEVED = 4
/** Compressing is given up after so many windows in a row that won nothing: the first make up for the time before. */
const PATIENCE = 4
/** A slow link is tried again after so many bytes of images; each next time after twice as many. */
const FIRST_TRUST = 128 * MIB
/** A link is as it was unless it is faster than before by this factor. */
const AS_BEFORE = 1.5
/** A codec must be faster than the link by this factor: it takes processor time from CRIU. */
const FASTER = 2
/** A codec must gain this factor to be worth it. */
const WORTH = 1.2
/** The weight of a new measurement against the old ones. */
const NEWER = 0.25
/** Assumed before anything is measured: what heaps come to on a busy machine, so that no codec is tried in vain. */
const untried: Record<CodecName, Skill> = {
  zstd: { rate: (350 * MIB) / 1000, left: 0.25 },
  lz4: { rate: (500 * MIB) / 1000, left: 0.4 },
}

/** The codec that gains most over a link of `link` bytes a ms with `lanes` cores, if one is worth it. */
export function best(link: number, skills: Record<CodecName, Skill>, lanes: number): CodecName | undefined {
  let found: CodecName | undefined
  let most = WORTH
  for (const codec of codecNames) {
    const { rate, left } = skills[codec]
    const gain = rate * lanes < FASTER * link ? 0 : Math.min((rate * lanes) / link, 1 / left)
    if (gain <= most) continue
    most = gain
    found = codec
  }
  return found
}

/** Learns how fast the link and the codecs are, and says with what to compress. Times are in ms. */
export class CompressionChooser {
  /** Chunks that are compressed at a time. */
  readonly #lanes: number
  readonly #skills = { zstd: { ...untried.zstd }, lz4: { ...untried.lz4 } }
  #choice: CodecName | undefined
  /** The link's rate, bytes a ms, where it holds us up. */
  #link: number | undefined
  /** The link's rate in the last windows, bytes a ms, if it held us up in each of them. */
  #heldUp: number[] = []
  /** What the rate was before the link was tried again: then one window is enough. */
  #before = 0
  /** Bytes of images since the link was last seen to hold us up. */
  #unseen = 0
  /** Windows in a row in which compressing won nothing. */
  #vain = 0
  /** Bytes of images after which a slow link is tried again. */
  #trust = FIRST_TRUST
  /** The window: when it began, bytes that went out, bytes of images that were taken, and ms waited for the link. */
  #window: { from: number; out: number; raw: number; waited: number }

  constructor(lanes: number, now: number) {
    this.#lanes = lanes
    this.#window = { from: now, out: 0, raw: 0, waited: 0 }
  }

  /** `bytes` went out, and for `ms` nothing else could. */
  sent(bytes: number, ms: number): void {
    this.#window.out += bytes
    this.#window.waited += ms
  }

  /** `bytes` bytes of images were taken from the source. */
  taken(bytes: number): void {
    this.#window.raw += bytes
  }

  /** `raw` bytes of an image became `packed` bytes, in `ms`. */
  packed(codec: CodecName, raw: number, packed: number, ms: number): void {
    drift(this.#skills[codec], { rate: raw / Math.max(ms, 0.01), left: packed / raw })
  }

  /** The codec to compress with now; undefined for none. */
  choose(now: number): CodecName | undefined {
    const { from, out, raw, waited } = this.#window
    const ms = now - from
    if (ms < WINDOW_MS) return this.#choice
    if (waited >= ms * HELD_UP) this.#slow(out / ms)
    else this.#fast(raw / ms)
    this.#choice = this.#link === undefined ? undefined : best(this.#link, this.#skills, this.#lanes)
    this.#window = { from: now, out: 0, raw: 0, waited: 0 }
    return this.#choice
  }

  /** The link held us up in this window. */
  #slow(rate: number): void {
    this.#heldUp = [...this.#heldUp, rate].slice(-BELIEVED)
    if (rate <= AS_BEFORE * this.#before) {
      this.#heldUp = Array.from({ length: BELIEVED }, () => rate)
      this.#before = 0
    }
    if (this.#heldUp.length === BELIEVED) this.#link = Math.max(...this.#heldUp)
    this.#unseen = 0
    this.#vain = 0
    if (this.#choice !== undefined) return
    // What did not pay once may pay later: other memory, other work on this host.
    for (const codec of codecNames) drift(this.#skills[codec], untried[codec])
  }

  /** The link did not hold us up in this window. */
  #fast(rate: number): void {
    if (this.#choice !== undefined && this.#link !== undefined) {
      this.#unseen += this.#window.raw
      this.#vain = rate < WORTH * this.#link ? this.#vain + 1 : 0
      if (this.#unseen < this.#trust && this.#vain < PATIENCE) return
      this.#before = this.#unseen < this.#trust ? 0 : this.#link
      if (this.#unseen >= this.#trust) this.#trust *= 2
    } else this.#before = 0
    this.#link = undefined
    this.#heldUp = []
    this.#unseen = 0
    this.#vain = 0
  }
}

function drift(skill: Skill, to: Skill): void {
  skill.rate += (to.rate - skill.rate) * NEWER
  skill.left += (to.left - skill.left) * NEWER
}
