/** Finds pages of zeros in a chunk of an image. */

export const PAGE = 4096
const WORDS = PAGE / 4
/** Fewer pages of zeros in a row are left to the codec. */
const LEAST_PAGES = 16
const zeroPage = Buffer.alloc(PAGE)

/** Consecutive bytes, from `from` to before `to`. */
export interface Run {
  from: number
  to: number
  zero: boolean
}

/**
 * Divides the first `bytes` bytes of `raw` into runs of zeros, each of at least `least` pages, and of anything else.
 * `words` is a window on `raw`.
 */
export function zeroRuns(raw: Buffer, words: Int32Array, bytes: number, least = LEAST_PAGES): Run[] {
  const pages = Math.floor(bytes / PAGE)
  const runs: Run[] = []
  let done = 0
  for (let page = 0; page < pages; page++) {
    if (!isZero(raw, words, page)) continue
    const first = page
    while (page + 1 < pages && isZero(raw, words, page + 1)) page++
    if (page + 1 - first < least) continue
    if (first * PAGE > done) runs.push({ from: done, to: first * PAGE, zero: false })
    done = (page + 1) * PAGE
    runs.push({ from: first * PAGE, to: done, zero: true })
  }
  if (done < bytes) runs.push({ from: done, to: bytes, zero: false })
  return runs
}

/** Looks at some words first: in most pages one of them tells. */
function isZero(raw: Buffer, words: Int32Array, page: number): boolean {
  const at = page * WORDS
  if (words[at] !== 0 || words[at + WORDS / 2] !== 0 || words[at + WORDS - 1] !== 0) return false
  return raw.compare(zeroPage, 0, PAGE, page * PAGE, (page + 1) * PAGE) === 0
}
