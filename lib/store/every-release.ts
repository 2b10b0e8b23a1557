/** Pagemaps as every release of CRIU reads them, whichever made them: 4.1 does not read those of 4.2 and newer. */
import { Fault } from '../fault.ts'
import { encodePagemap, PAGEMAP_STEP, readPagemap } from '../format/pagemap.ts'
import { runInSlices } from './in-turns.ts'
import { type Piece, stepsOf } from './stored-image.ts'

/** The pagemap image in these pieces with both counts in each entry; undefined for one that is not understood, which is good as it is for who does. */
export async function forEveryRelease(pieces: Iterable<Piece>): Promise<Iterable<Uint8Array> | undefined> {
  try {
    await runInSlices(readThrough(pieces))
  } catch (error) {
    if (error instanceof Fault) return undefined
    throw error
  }
  const { pagesId, entries } = readPagemap(stepsOf(pieces, PAGEMAP_STEP))
  return encodePagemap(pagesId, entries)
}

function* readThrough(pieces: Iterable<Piece>): Generator<void, void> {
  for (const _ of readPagemap(stepsOf(pieces, PAGEMAP_STEP)).batches) yield
}
