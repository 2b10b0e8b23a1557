/**
 * The images of an incremental dump whose earlier rounds are in other directories, as if it had been a full one (a source).
 *
 * CRIU leaves a link `parent` in each directory of a chain. The newest directory has everything but some of the pages: its pagemaps
 * are written anew, its pages images are put together from those of all layers (flat-pages.ts), the other images are passed on.
 */
import { existsSync, lstatSync, readlinkSync, realpathSync, type Stats, statSync } from 'node:fs'
import { join } from 'node:path'
import { Fault } from '../fault.ts'
import { decodeInventory } from '../format/inventory.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import { checkPagemaps } from '../format/pagemap.ts'
import type { ImageBody, ImageSource } from '../stream/image.ts'
import { chainPages, naming } from './chain-pages.ts'
import { listImages, PARENT, piecesOf, readImage } from './directory.ts'

export const pagemapPattern = /^pagemap-(shmem-)?\d+\.img$/

/** A dump's directory, then those of its earlier rounds, the newest first. */
export type DirectoryChain = readonly [string, ...string[]]

export interface FlatImage {
  name: ImageName
  body: Extract<ImageBody, { kind: 'pieces' }>
}

export interface ChainSource extends ImageSource {
  readonly images: AsyncIterable<FlatImage>
}

/** Follows the links `parent`. Throws `MISSING`, `FORMAT` or `IO`. */
export function chainOf(path: string): DirectoryChain {
  const chain: [string, ...string[]] = [path]
  const seen = new Set([identity(path)])
  for (let next = parentOf(path); next !== undefined; next = parentOf(next)) {
    const found = identity(next)
    if (seen.has(found)) throw new Fault('FORMAT', `the parents of ${path} lead in a circle: ${next} comes twice`)
    seen.add(found)
    chain.push(next)
  }
  return chain
}

/** A link, or the directory itself where a chain was copied with `cp -L`. */
function parentOf(path: string): string | undefined {
  const link = join(path, PARENT)
  if (lstatSync(link, { throwIfNoEntry: false }) === undefined) return undefined
  try {
    return realpathSync(link)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    throw new Fault('MISSING', `the parent of ${path}, ${readlinkSync(link)}, cannot be read (${code})`, {
      hint: 'the directories of a chain are moved together',
      cause,
    })
  }
}

function identity(path: string): string {
  let found: Stats
  try {
    found = statSync(path)
  } catch (cause) {
    throw new Fault('MISSING', `cannot read the directory ${path} (${(cause as NodeJS.ErrnoException).code})`, {
      cause,
    })
  }
  if (!found.isDirectory()) throw new Fault('MISSING', `${path} is not a directory`)
  return `${found.dev}:${found.ino}`
}

/** The images of the newest dump of a chain, with all its pages. Throws `MISSING`, `FAILED_DUMP`, `FORMAT`, `LIMIT` or `IO`. */
export function chainSource(chain: DirectoryChain): ChainSource {
  const names = listImages(chain[0])
  for (const directory of chain) checkInventory(directory, directory === chain[0])
  checkPagemaps(names, ` in ${chain[0]}`)
  let failure: Error | undefined
  async function* images(): AsyncGenerator<FlatImage> {
    for (const image of flatImages(chain, names)) {
      if (failure !== undefined) throw failure
      yield image
    }
  }
  return {
    images: images(),
    destroy(reason) {
      failure ??= reason
    },
  }
}

/** In the order of `names`, in which pagemaps come before pages: those that a pagemap has brought are not passed on as they are. */
function* flatImages(chain: DirectoryChain, names: readonly ImageName[]): Generator<FlatImage> {
  const brought = new Set<ImageName>()
  for (const name of names) {
    if (brought.has(name)) continue
    if (!pagemapPattern.test(name)) {
      yield { name, body: { kind: 'pieces', pieces: piecesOf(join(chain[0], name)) } }
      continue
    }
    const flat = chainPages(chain, name)
    if (brought.has(flat.pagesName)) {
      throw new Fault('FORMAT', `${join(chain[0], name)} has its pages in ${flat.pagesName}, as another pagemap has`)
    }
    brought.add(flat.pagesName)
    yield { name, body: { kind: 'pieces', pieces: flat.pagemap() } }
    yield { name: flat.pagesName, body: { kind: 'pieces', pieces: flat.pages() } }
  }
}

/** A directory that a page server has filled has no inventory, and is a parent all the same. */
function checkInventory(directory: string, newest: boolean): void {
  const file = join(directory, INVENTORY)
  if (!newest && !existsSync(file)) return
  const { preDump } = naming(file, () => decodeInventory(readImage(file)))
  if (newest && preDump) {
    throw new Fault('FAILED_DUMP', `${directory} is a pre-dump: it has pages, and no process`, {
      hint: 'name the directory of the dump that came after it',
    })
  }
}
