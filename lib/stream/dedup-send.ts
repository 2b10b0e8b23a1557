/**
 * The pages that a receiver has, as its sender knows them: the digests that the receiver offered, before the tasks are
 * frozen where that can be, and what was sent to it. A page that nobody has costs one XXH64; SHA-256 is taken only of
 * one that may be known. So the second copy of a page in one snapshot is still sent, and all further ones are not.
 */
import { Fault } from '../fault.ts'
import type { Frame, FrameOf } from '../format/frame-types.ts'
import { DIGEST_WORDS, MOST_OFFERED, MOST_RECALLED, OFFERED, strongDigest, weakDigest } from '../format/page-digest.ts'
import { openPageTable } from '../format/page-table.ts'
import { defer } from './wait.ts'

/** A page that the receiver has: number `first` of what it offered, or of the image on channel `source`. */
export interface KnownPage {
  source: number
  first: number
}

const STRONG_WORDS = DIGEST_WORDS - 1
/** Pages that the arrays have room for at first. */
const FIRST = 1024

export class DedupSender {
  readonly #unoffered: () => void
  /** Asks the receiver; undefined before it was asked. */
  #say: ((frame: Frame) => void) | undefined
  /** Weak digests. The receiver chooses at most half of them, and at most MOST_OFFERED pages are held. */
  readonly #table = openPageTable(MOST_OFFERED)
  /** Strong digests by entry of the table; `#hashed` is 1 where one is there. */
  #strong = new Uint32Array(FIRST * STRONG_WORDS)
  #hashed = new Uint8Array(FIRST)
  /** Where the receiver has the page of an entry: a channel, or OFFERED, and the page's number there. */
  #sources = new Uint32Array(FIRST)
  #firsts = new Float64Array(FIRST)
  /** The strong digest that was computed last. */
  readonly #scratch = new Uint32Array(STRONG_WORDS)
  /** Pages on the link, by channel. */
  readonly #sent = new Map<number, number>()
  /** Whether the receiver takes references at all: undefined before its first answer. */
  offers: boolean | undefined
  /** Pages that the receiver offers, once it has said so; and those whose digests are here. */
  #total: number | undefined
  #here = 0
  /** Bytes of pages that were found. */
  spared = 0
  readonly #ready = defer<void>()
  /** Resolves when all digests are here, or it is known that there are none. */
  readonly ready = this.#ready.promise

  /** `unoffered` is called where the receiver takes no references. */
  constructor(unoffered: () => void) {
    this.#unoffered = unoffered
  }

  /** Asks the receiver for its digests; `say` puts a frame on the link. */
  ask(say: (frame: Frame) => void): void {
    this.#say = say
    say({ type: 'recall', offset: this.#here })
  }

  /** Takes an answer, and asks for the rest. Throws `FORMAT` for an answer that cannot be. */
  take(answer: FrameOf<'recalled'>): void {
    const count = answer.digests.length / DIGEST_WORDS
    this.#total ??= answer.total
    const expected = Math.min(answer.total - this.#here, MOST_RECALLED)
    const asked = this.#say !== undefined && (this.offers === undefined || (this.offers && this.#here < this.#total))
    const same = answer.total === this.#total || answer.total === this.#here
    if (!asked || !same || count !== expected) throw new Fault('FORMAT', 'an offer of pages that cannot be')
    if (!answer.offers && this.offers === undefined) this.#unoffered()
    this.offers ??= answer.offers
    this.#total = answer.total
    for (let at = 0; at < answer.digests.length; at += DIGEST_WORDS) {
      const entry = this.#add(answer.digests[at] as number, OFFERED, this.#here++)
      if (entry === undefined) continue
      this.#strong.set(answer.digests.subarray(at + 1, at + DIGEST_WORDS), entry * STRONG_WORDS)
      this.#hashed[entry] = 1
    }
    if (this.#here < this.#total) this.#say?.({ type: 'recall', offset: this.#here })
    else this.#ready.resolve()
  }

  /**
   * Returns where the receiver has a page with these contents. Where it has none, the page is noted as number `number`
   * of `channel`, for it will have that one.
   */
  find(page: Uint8Array, channel: number, number: number): KnownPage | undefined {
    const weak = weakDigest(page)
    let taken = false
    const entry = this.#table.find(weak, (candidate) => {
      if (!taken) strongDigest(page, this.#scratch, 0)
      taken = true
      return this.#hashed[candidate] === 0 || this.#isScratch(candidate)
    })
    if (entry === undefined) {
      const own = this.#add(weak, channel, number)
      if (own !== undefined && taken) this.#note(own)
      return undefined
    }
    const [source, first] = [this.#sources[entry] as number, this.#firsts[entry] as number]
    if (this.#hashed[entry] === 0) {
      this.#note(entry)
      this.#sources[entry] = channel
      this.#firsts[entry] = number
      return undefined
    }
    // Images go out side by side: what is not on the link yet cannot be named by another one.
    if (source !== OFFERED && source !== channel && first >= (this.#sent.get(source) ?? 0)) return undefined
    this.spared += page.length
    return { source, first }
  }

  /** The first `pages` pages of a channel are on the link. */
  sent(channel: number, pages: number): void {
    this.#sent.set(channel, pages)
  }

  /** Returns the entry, or undefined where the table is full. */
  #add(weak: number, source: number, first: number): number | undefined {
    const entry = this.#table.add(weak)
    if (entry === undefined) return undefined
    if (entry === this.#sources.length) this.#grow()
    this.#sources[entry] = source
    this.#firsts[entry] = first
    return entry
  }

  /** Doubles the room of all arrays. */
  #grow(): void {
    const length = 2 * this.#sources.length
    this.#strong = copied(this.#strong, new Uint32Array(length * STRONG_WORDS))
    this.#hashed = copied(this.#hashed, new Uint8Array(length))
    this.#sources = copied(this.#sources, new Uint32Array(length))
    this.#firsts = copied(this.#firsts, new Float64Array(length))
  }

  /** Keeps the strong digest that was computed last as that of `entry`. */
  #note(entry: number): void {
    this.#strong.set(this.#scratch, entry * STRONG_WORDS)
    this.#hashed[entry] = 1
  }

  #isScratch(entry: number): boolean {
    const at = entry * STRONG_WORDS
    return this.#scratch.every((word, index) => this.#strong[at + index] === word)
  }
}

function copied<Numbers extends { set(from: Numbers): void }>(from: Numbers, into: Numbers): Numbers {
  into.set(from)
  return into
}
