/**
 * Whether a snapshot that came by itself can be restored by itself. A dump whose rounds went elsewhere has pages that nobody here has, and a pre-dump has no process: who
 * let the tasks go for one would have lost them. What is not understood is not judged.
 */
import { commandName } from '../command-name.ts'
import { Fault } from '../fault.ts'
import { decodeInventory, type Inventory } from '../format/inventory.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import { checkPagemaps, PAGEMAP_STEP, pageFlag, readPagemap } from '../format/pagemap.ts'
import { pagemapPattern } from './directory-chain.ts'
import { type StoredImage, stepsOf } from './stored-image.ts'

/** CRIU's has some hundred bytes. It is read in one go. */
const LARGEST_INVENTORY = 2 ** 16

/** Its inventory, if it has one. Throws `LIMIT`, or `FORMAT` for one that is not understood. */
export function inventoryIn(images: ReadonlyMap<ImageName, StoredImage>): Inventory | undefined {
  const image = images.get(INVENTORY)
  if (image === undefined) return undefined
  if (image.size > LARGEST_INVENTORY) {
    throw new Fault('LIMIT', `${INVENTORY} of ${image.size} bytes, at most ${LARGEST_INVENTORY} are allowed`)
  }
  return decodeInventory(Buffer.concat([...stepsOf(image.pieces, LARGEST_INVENTORY)]))
}

/** Throws `FAILED_DUMP`. Yields now and then. */
export function* checkWhole(images: ReadonlyMap<ImageName, StoredImage>): Generator<void, void> {
  if (isPreDump(images)) throw incomplete('a pre-dump has pages and no process')
  checkPagemaps(images.keys())
  for (const image of images.values()) {
    if (!pagemapPattern.test(image.name)) continue
    if (yield* hasParent(image)) throw incomplete(`${image.name} has pages in a parent, which did not come here`)
  }
}

function isPreDump(images: ReadonlyMap<ImageName, StoredImage>): boolean {
  try {
    return inventoryIn(images)?.preDump === true
  } catch (error) {
    return unknown(error)
  }
}

function* hasParent({ pieces }: StoredImage): Generator<void, boolean> {
  try {
    for (const entries of readPagemap(stepsOf(pieces, PAGEMAP_STEP)).batches) {
      if (entries.some(({ flags }) => (flags & pageFlag.parent) !== 0)) return true
      yield
    }
    return false
  } catch (error) {
    return unknown(error)
  }
}

function unknown(error: unknown): false {
  if (error instanceof Fault) return false
  throw error
}

function incomplete(what: string): Fault {
  return new Fault('FAILED_DUMP', what, {
    hint: `for rounds before a dump: ${commandName('pre-copy')}, or ${commandName('proxy')} --page-server-port`,
  })
}
