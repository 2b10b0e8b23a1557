/**
 * What a sender knows of the pages that its receiver has: the digests that were offered to it, before the tasks are
 * frozen where that can be, and what it has sent itself. A page that nobody has costs one XXH64; SHA-256 is taken only
 * of one that may be known. So of a page that comes twice in one snapshot the second copy is still sent, and all
 * further ones are not.
 */
import { Fault } from '../fault.ts'
import { DIGEST_WORDS, MOST_OFFERED, MOST_RECALLED, OFFERED, strongDigest, weakDigest } from '../format/page-digest.ts'
import { openPageTable } from '../format/page-table.ts'
import type { Frame } from '../format/wire.ts'
import type { FrameWriter } from './frames.ts'

type Recalled = Extract<Frame, { type: 'recalled' }>

/** A page that the receiver has: number `first` of what it offered, or of the image on channel `source`. */
export interface KnownPage {
  source: number
  first: number
}

export interface DedupSender {
  /** Whether the receiver takes references at all: undefined before its first answer. */
  readonly offers: boolean | undefined
  /** Resolves when all digests are here, or it is known that there are none. */
  readonly ready: Promise<void>
  /** Asks for them. */
  ask(writer: FrameWriter): void
  /** Takes an answer, and asks for the rest. Throws `FORMAT` for one that cannot be. */
  take(answer: Recalled): void
  /** Where the receiver has a page with these contents; if nowhere, it will have it as this one of that channel. */
  find(page: Uint8Array, channel: number, number: number): KnownPage | undefined
  /** Bytes of pages that were found. */
  readonly spared: number
  /** So many pages of a channel are on the link. */
  sent(channel: number, pages: number): void
}

const STRONG_WORDS = DIGEST_WORDS - 1
const FIRST = 1024

/** `unoffered` is called where the receiver takes no references. */
export function openDedupSender(unoffered: () => void): DedupSender {
  // Half of its memory may be the receiver's choice, and none of it is more than that of MOST_OFFERED pages.
  const table = openPageTable(MOST_OFFERED)
  let strong = new Uint32Array(FIRST * STRONG_WORDS)
  let sources = new Uint32Array(FIRST)
  let firsts = new Float64Array(FIRST)
  /** 1 where the strong digest is there. */
  let hashed = new Uint8Array(FIRST)
  const scratch = new Uint32Array(STRONG_WORDS)
  const sentPages = new Map<number, number>()
  let writer: FrameWriter | undefined
  let offers: boolean | undefined
  let total: number | undefined
  let here = 0
  let spared = 0
  let resolve = (): void => {}
  const ready = new Promise<void>((done) => {
    resolve = done
  })

  function add(weak: number, source: number, first: number): number | undefined {
    const entry = table.add(weak)
    if (entry === undefined) return undefined
    if (entry === sources.length) grow()
    sources[entry] = source
    firsts[entry] = first
    return entry
  }

  function grow(): void {
    const length = 2 * sources.length
    const old = { strong, sources, firsts, hashed }
    strong = new Uint32Array(length * STRONG_WORDS)
    sources = new Uint32Array(length)
    firsts = new Float64Array(length)
    hashed = new Uint8Array(length)
    strong.set(old.strong)
    sources.set(old.sources)
    firsts.set(old.firsts)
    hashed.set(old.hashed)
  }

  function ask(): void {
    // Whoever waits for an answer learns why none comes.
    writer?.send({ type: 'recall', offset: here }).catch(() => {})
  }

  function isScratch(entry: number): boolean {
    const at = entry * STRONG_WORDS
    for (let word = 0; word < STRONG_WORDS; word++) if (strong[at + word] !== scratch[word]) return false
    return true
  }

  return {
    get offers() {
      return offers
    },
    ready,
    get spared() {
      return spared
    },
    ask(over) {
      writer = over
      ask()
    },
    take(answer) {
      const count = answer.digests.length / DIGEST_WORDS
      total ??= answer.total
      const expected = Math.min(answer.total - here, MOST_RECALLED)
      const asked = writer !== undefined && (offers === undefined || (offers && here < total))
      const same = answer.total === total || answer.total === here
      if (!asked || !same || count !== expected) throw new Fault('FORMAT', 'an offer of pages that cannot be')
      if (!answer.offers && offers === undefined) unoffered()
      offers ??= answer.offers
      total = answer.total
      for (let at = 0; at < answer.digests.length; at += DIGEST_WORDS) {
        const entry = add(answer.digests[at] as number, OFFERED, here++)
        if (entry === undefined) continue
        strong.set(answer.digests.subarray(at + 1, at + DIGEST_WORDS), entry * STRONG_WORDS)
        hashed[entry] = 1
      }
      if (here < total) ask()
      else resolve()
    },
    find(page, channel, number) {
      const weak = weakDigest(page)
      let taken = false
      const entry = table.find(weak, (candidate) => {
        if (!taken) strongDigest(page, scratch, 0)
        taken = true
        return hashed[candidate] === 0 || isScratch(candidate)
      })
      if (entry === undefined) {
        const own = add(weak, channel, number)
        if (own !== undefined && taken) note(own)
        return undefined
      }
      const [source, first] = [sources[entry] as number, firsts[entry] as number]
      if (hashed[entry] === 0) {
        note(entry)
        sources[entry] = channel
        firsts[entry] = number
        return undefined
      }
      // Images go out side by side: what is not on the link yet cannot be named by another one.
      if (source !== OFFERED && source !== channel && first >= (sentPages.get(source) ?? 0)) return undefined
      spared += page.length
      return { source, first }
    },
    sent(channel, pages) {
      sentPages.set(channel, pages)
    },
  }

  function note(entry: number): void {
    strong.set(scratch, entry * STRONG_WORDS)
    hashed[entry] = 1
  }
}
