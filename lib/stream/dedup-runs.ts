/** Divides a chunk of pages into runs of zeros, of pages that the receiver has, and of pages that must be sent. */
import { MOST_SAME } from '../format/page-digest.ts'
import type { DedupSender, KnownPage } from './dedup-send.ts'
import { PAGE, type Run, zeroRuns } from './zero-pages.ts'

export interface KnownRun extends Run {
  /** Where the receiver has it. */
  same?: KnownPage
}

/**
 * Divides the first `bytes` bytes of `raw`, which are whole pages or the image's end. The first page is number `number`
 * of the image on `channel`.
 */
export function knownRuns(
  known: DedupSender,
  { raw, words }: { raw: Buffer; words: Int32Array },
  bytes: number,
  channel: number,
  number: number,
): KnownRun[] {
  const runs: KnownRun[] = []
  for (const run of zeroRuns(raw, words, bytes, 1)) {
    if (run.zero) runs.push(run)
    else addPages(runs, run)
  }
  return runs

  function addPages(into: KnownRun[], { from, to }: Run): void {
    for (let at = from; at < to; at += PAGE) {
      const end = Math.min(at + PAGE, to)
      const page = raw.subarray(at, end)
      const same = page.length === PAGE ? known.find(page, channel, number + at / PAGE) : undefined
      const last = into.at(-1)
      if (last !== undefined && last.to === at && !last.zero && goesOn(last, same)) last.to = end
      else into.push({ from: at, to: end, zero: false, ...(same && { same }) })
    }
  }
}

function goesOn({ from, to, same }: KnownRun, next: KnownPage | undefined): boolean {
  if (same === undefined || next === undefined) return same === next
  const pages = (to - from) / PAGE
  return same.source === next.source && same.first + pages === next.first && pages < MOST_SAME
}
