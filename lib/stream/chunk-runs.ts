/** Divides a chunk of an image into runs of zeros, of pages that the receiver has, and of what must be sent. */
import { MOST_SAME } from '../format/page-digest.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import type { DedupSender, KnownPage } from './dedup-send.ts'

const WORDS = PAGE_BYTES / 4
/** Fewer pages of zeros in a row are left to the codec. */
const LEAST_PAGES = 16
const zeroPage = Buffer.alloc(PAGE_BYTES)

/** Consecutive bytes, from `from` to before `to`. */
export interface Run {
  from: number
  to: number
  zero: boolean
  /** Where the receiver has them. */
  same?: KnownPage
}

/**
 * Divides the first `bytes` bytes of `raw` into runs of zeros, each of at least `least` pages, and of anything else.
 * `words` is a window on `raw`.
 */
export function zeroRuns(raw: Buffer, words: Int32Array, bytes: number, least = LEAST_PAGES): Run[] {
  const pages = Math.floor(bytes / PAGE_BYTES)
  const runs: Run[] = []
  let done = 0
  for (let page = 0; page < pages; page++) {
    if (!isZero(raw, words, page)) continue
    const first = page
    while (page + 1 < pages && isZero(raw, words, page + 1)) page++
    if (page + 1 - first < least) continue
    if (first * PAGE_BYTES > done) runs.push({ from: done, to: first * PAGE_BYTES, zero: false })
    done = (page + 1) * PAGE_BYTES
    runs.push({ from: first * PAGE_BYTES, to: done, zero: true })
  }
  if (done < bytes) runs.push({ from: done, to: bytes, zero: false })
  return runs
}

/** Looks at some words first: in most pages one of them tells. */
function isZero(raw: Buffer, words: Int32Array, page: number): boolean {
  const at = page * WORDS
  if (words[at] !== 0 || words[at + WORDS / 2] !== 0 || words[at + WORDS - 1] !== 0) return false
  return raw.compare(zeroPage, 0, PAGE_BYTES, page * PAGE_BYTES, (page + 1) * PAGE_BYTES) === 0
}

/**
 * Divides the first `bytes` bytes of `raw`, which are whole pages or the image's end, and looks up each page that is
 * not zeros. The first page is number `number` of the image on `channel`.
 */
export function knownRuns(
  known: DedupSender,
  { raw, words }: { raw: Buffer; words: Int32Array },
  bytes: number,
  channel: number,
  number: number,
): Run[] {
  const runs: Run[] = []
  for (const run of zeroRuns(raw, words, bytes, 1)) {
    if (run.zero) {
      runs.push(run)
      continue
    }
    for (let at = run.from; at < run.to; at += PAGE_BYTES) {
      const to = Math.min(at + PAGE_BYTES, run.to)
      const page = raw.subarray(at, to)
      const same = page.length === PAGE_BYTES ? known.find(page, channel, number + at / PAGE_BYTES) : undefined
      const last = runs.at(-1)
      if (last?.zero === false && goesOn(last, same)) last.to = to
      else runs.push({ from: at, to, zero: false, ...(same && { same }) })
    }
  }
  return runs
}

/** Whether the page after a run, which the receiver has as `next`, belongs to it. */
function goesOn({ from, to, same }: Run, next: KnownPage | undefined): boolean {
  if (same === undefined || next === undefined) return same === next
  const pages = (to - from) / PAGE_BYTES
  return same.source === next.source && same.first + pages === next.first && pages < MOST_SAME
}
