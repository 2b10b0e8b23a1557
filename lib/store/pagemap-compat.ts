/** Pagemaps that every release of CRIU reads: 4.1 does not read those that 4.2 and newer write. */
import { Fault } from '../fault.ts'
import { encodePagemap, PAGEMAP_STEP, readPagemap } from '../format/pagemap.ts'
import { type Piece, stepsOf } from './stored-image.ts'
import { runInSlices } from './time-slices.ts'

/**
 * Returns the pagemap image in these pieces with both counts of pages in each entry. Returns undefined for one that we
 * do not understand: it goes to CRIU as it is.
 */
export async function forEveryRelease(pieces: Iterable<Piece>): Promise<Iterable<Uint8Array> | undefined> {
  try {
    await runInSlices(readPagemap(stepsOf(pieces, PAGEMAP_STEP)).batches[Symbol.iterator]())
  } catch (error) {
    if (error instanceof Fault) return undefined
    throw error
  }
  const { pagesId, entries } = readPagemap(stepsOf(pieces, PAGEMAP_STEP))
  return encodePagemap(pagesId, entries)
}
