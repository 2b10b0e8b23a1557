/**
 * Images in a directory, as CRIU itself writes and reads them.
 *
 * The directory has a temporary name beside the real one and is renamed when everything is verified. Its mode is 0700,
 * that of its files 0600. So a failed run leaves nothing, and nobody else reads the images.
 */

import { closeSync, constants, createReadStream, fstatSync, lstatSync, readdirSync, readFileSync } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { commandName } from '../command-name.ts'
import { Fault } from '../fault.ts'
import { MOST_DATA } from '../format/frame.ts'
import { type ImageName, INVENTORY, imageName } from '../format/names.ts'
import { openRegularFile } from '../kernel/own-file.ts'
import type { ImageSink, ImageSource, OpenImage } from '../stream/image.ts'
import { PartialDirectory } from './partial-directory.ts'

/** The name of CRIU's link to the directory of the dump before, which has the pages that did not change since. */
export const PARENT = 'parent'

export interface DirectorySink extends ImageSink {
  /** Everything is there: gives the directory its name. Throws `EXISTS` or `IO`. */
  seal(): void
  /** Removes what was written. */
  drop(): Promise<void>
}

/** Throws `EXISTS` if `path` is there and is not an empty directory, `IO` if nothing can be made beside it. */
export function directorySink(path: string): DirectorySink {
  const directory = new PartialDirectory(path)
  const files = new Set<FileHandle>()
  return {
    async open(name) {
      const file = await directory.create(name).catch(ioFault(join(path, name)))
      files.add(file)
      const scratch = Buffer.allocUnsafeSlow(MOST_DATA)
      return {
        room: () => scratch,
        async wrote(bytes) {
          for (let done = 0; done < bytes; ) {
            done += (await file.write(scratch, done, bytes - done).catch(ioFault(join(path, name)))).bytesWritten
          }
        },
        async end() {
          files.delete(file)
          await file.close().catch(ioFault(join(path, name)))
        },
      }
    },
    seal: () => directory.seal(),
    async drop() {
      for (const file of files) await file.close().catch(() => {})
      directory.drop()
    },
  }
}

/** Returns what throws an error at `path` as a Fault `IO`. A Fault is thrown as it is. */
export function ioFault(path: string): (cause: unknown) => never {
  return (cause) => {
    if (cause instanceof Fault) throw cause
    const code = (cause as NodeJS.ErrnoException).code ?? 'unknown error'
    throw new Fault('IO', `${path}: ${code}`, {
      cause,
      ...(code === 'ENOSPC' ? { hint: 'make room on that file system, or write elsewhere' } : {}),
    })
  }
}

/**
 * Reads the images of a directory that `criu dump -D` wrote: its regular files `*.img`, inventory.img last, as CRIU
 * writes it. Throws as `listImages` does, and `USAGE` for an incremental dump.
 */
export function directorySource(path: string): ImageSource {
  const names = listImages(path)
  if (lstatSync(join(path, PARENT), { throwIfNoEntry: false }) !== undefined) {
    throw new Fault('USAGE', `${path} is an incremental dump: its pages are partly in its parent`, {
      hint: `flatten it: ${commandName('flatten')} -D ${path} --to-dir OUT`,
    })
  }
  let failure: Error | undefined
  async function* images(): AsyncGenerator<OpenImage> {
    for (const name of names) {
      if (failure !== undefined) throw failure
      yield { name, body: { kind: 'pieces', pieces: piecesOf(join(path, name)) } }
    }
  }
  return {
    images: images(),
    destroy(reason) {
      failure ??= reason
    },
  }
}

/**
 * Bytes of a file that is read at once: a stream takes five turns of Node's threads, and a dump has ten or more files
 * that are smaller.
 */
const SMALL_FILE = 2 ** 16

/** Yields one image in pieces. Throws as `openImage` does. */
export async function* piecesOf(file: string): AsyncGenerator<Buffer> {
  const fd = openImage(file)
  try {
    if (fstatSync(fd).size > SMALL_FILE) {
      yield* createReadStream('', { fd, highWaterMark: MOST_DATA }) as AsyncIterable<Buffer>
      return
    }
    const small = readAndClose(fd)
    if (small.length > 0) yield small
  } catch (cause) {
    ioFault(file)(cause)
  }
}

/** Reads one image at once. Throws as `openImage` does. */
export function readImage(file: string): Buffer {
  const fd = openImage(file)
  try {
    return readAndClose(fd)
  } catch (cause) {
    return ioFault(file)(cause)
  }
}

function readAndClose(fd: number): Buffer {
  try {
    return readFileSync(fd)
  } finally {
    closeSync(fd)
  }
}

/**
 * Opens an image for reading, whatever the owner of its directory has put in its place meanwhile. Throws `IO`, and
 * `MISSING` for what is no regular file.
 */
export function openImage(file: string): number {
  try {
    return openRegularFile(file, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (cause) {
    return cause instanceof Fault ? refuseOdd(file) : ioFault(file)(cause)
  }
}

function refuseOdd(file: string): never {
  throw new Fault('MISSING', `${file} is not a regular file`, { hint: 'put the image itself there' })
}

/** Lists the images in a directory, inventory.img last. Throws `MISSING`, `NAME` or `FAILED_DUMP`. */
export function listImages(path: string): ImageName[] {
  let files: ReturnType<typeof entries>
  try {
    files = entries(path)
  } catch (cause) {
    throw unreadable(path, cause)
  }
  const images = files.filter((file) => file.name.endsWith('.img'))
  const odd = images.find((file) => !file.isFile())
  if (odd !== undefined) refuseOdd(join(path, odd.name))
  const names = images.map((file) => imageName(file.name))
  if (!names.includes(INVENTORY)) {
    throw new Fault('FAILED_DUMP', `no ${INVENTORY} in ${path}`, {
      hint: 'name a directory that criu dump -D finished',
    })
  }
  return [...names.filter((name) => name !== INVENTORY).sort(), INVENTORY]
}

function entries(path: string) {
  return readdirSync(path, { withFileTypes: true })
}

/** The fault `MISSING` for a directory that cannot be read. */
export function unreadable(path: string, cause: unknown): Fault {
  const { code } = cause as NodeJS.ErrnoException
  return new Fault('MISSING', `cannot read the directory ${path} (${code})`, { cause })
}
