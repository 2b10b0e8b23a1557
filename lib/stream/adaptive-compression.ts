/**
 * Whether to compress what goes out now, and how: for `--compress auto`. Pure: it is told what happened, and when.
 *
 * Compressing pays where the link is what holds us up, and slower than a codec. So time is cut into short windows. In
 * one in which we mostly waited for the link, the link's rate is what went out; in any other the link is fast enough,
 * as far as anybody can tell. What a codec gains is what it makes of the bytes, but not more than its own speed allows.
 * A link that was slow once is asked again after a while, by sending plainly: while we compress it cannot be seen to be
 * fast.
 */
import { type CodecName, codecNames } from '../format/enums.ts'

export interface CompressionChooser {
  /** `bytes` went out, and for `ms` nothing else could. */
  sent(bytes: number, ms: number): void
  /** So many bytes of images were taken from the source. */
  taken(bytes: number): void
  /** `raw` bytes of an image became `packed` bytes, in `ms`. */
  packed(codec: CodecName, raw: number, packed: number, ms: number): void
  /** With what to compress now; undefined for not at all. */
  choose(now: number): CodecName | undefined
}

/** What one core does, in bytes a ms, and what part of them is left. */
export interface Skill {
  rate: number
  left: number
}

const MIB = 2 ** 20
const WINDOW_MS = 25
/** The part of a window that is spent waiting for a link that holds us up. */
const HELD_UP = 0.5
/**
 * In so many windows in a row a link must hold us up before it is believed, and of these the best counts: on a busy
 * host a receiver hesitates, and then is fast again.
 */
const BELIEVED = 4
/**
 * Windows in a row in which compressing won nothing before it is given up: the first have to make up for the time
 * before.
 */
const PATIENCE = 4
/** Bytes of images after which a slow link is asked again; each next time twice as many. */
const FIRST_TRUST = 128 * MIB
/** A link that is no faster than it was, by this, is as it was. */
const AS_BEFORE = 1.5
/** A codec must be faster than the link by this: it takes processor time from CRIU. */
const FASTER = 2
/** What a codec must gain. */
const WORTH = 1.2
/** How much a new measurement counts against the old ones. */
const NEWER = 0.25
/** Before anything is measured: what heaps come to on a busy machine, so that nothing is begun in vain. */
const untried: Record<CodecName, Skill> = {
  zstd: { rate: (350 * MIB) / 1000, left: 0.25 },
  lz4: { rate: (500 * MIB) / 1000, left: 0.4 },
}

/** The codec that gains most over a link of `link` bytes a ms, if one is worth it. */
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

/** `lanes` chunks are compressed at a time. */
export function openCompressionChooser(lanes: number, begin: number): CompressionChooser {
  const skills = { zstd: { ...untried.zstd }, lz4: { ...untried.lz4 } }
  let choice: CodecName | undefined
  /** Bytes a ms, where it holds us up. */
  let link: number | undefined
  /** The link's rate in the last windows, bytes a ms, each of which it held us up in. */
  let heldUp: number[] = []
  /** What it was before it was asked again: then one window is enough. */
  let before = 0
  let unseen = 0
  let vain = 0
  let trust = FIRST_TRUST
  let [from, out, raw, waited] = [begin, 0, 0, 0]

  function slow(rate: number): void {
    heldUp = [...heldUp, rate].slice(-BELIEVED)
    if (rate <= AS_BEFORE * before) {
      heldUp = Array.from({ length: BELIEVED }, () => rate)
      before = 0
    }
    if (heldUp.length === BELIEVED) link = Math.max(...heldUp)
    unseen = 0
    vain = 0
    if (choice !== undefined) return
    // What did not pay once may pay later: other memory, other work on this host.
    for (const codec of codecNames) drift(skills[codec], untried[codec])
  }

  function fast(rate: number): void {
    if (choice !== undefined && link !== undefined) {
      unseen += raw
      vain = rate < WORTH * link ? vain + 1 : 0
      if (unseen < trust && vain < PATIENCE) return
      before = unseen < trust ? 0 : link
      if (unseen >= trust) trust *= 2
    } else before = 0
    link = undefined
    heldUp = []
    unseen = 0
    vain = 0
  }

  return {
    sent(bytes, ms) {
      out += bytes
      waited += ms
    },
    taken(bytes) {
      raw += bytes
    },
    packed(codec, from, packed, ms) {
      drift(skills[codec], { rate: from / Math.max(ms, 0.01), left: packed / from })
    },
    choose(now) {
      const ms = now - from
      if (ms < WINDOW_MS) return choice
      if (waited >= ms * HELD_UP) slow(out / ms)
      else fast(raw / ms)
      choice = link === undefined ? undefined : best(link, skills, lanes)
      ;[from, out, raw, waited] = [now, 0, 0, 0]
      return choice
    },
  }
}

function drift(skill: Skill, to: Skill): void {
  skill.rate += (to.rate - skill.rate) * NEWER
  skill.left += (to.left - skill.left) * NEWER
}
