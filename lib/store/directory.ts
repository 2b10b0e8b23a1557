/**
 * Images in a directory, as CRIU itself leaves and wants them.
 *
 * Written under a temporary name beside the real one and renamed when everything is verified, files 0600 in a directory
 * 0700: a failed run leaves nothing, and nobody else reads them.
 */
import {
  createReadStream,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { Fault } from '../fault.ts'
import { type ImageName, INVENTORY, imageName } from '../format/names.ts'
import { MOST_DATA } from '../format/wire.ts'
import type { ImageSink, ImageSource, OpenImage } from '../stream/image.ts'

/** CRIU's link to the directory of the dump before, which has the pages that did not change since. */
export const PARENT = 'parent'

export interface DirectorySink extends ImageSink {
  /** Everything is there: gives the directory its name. Throws `EXISTS` or `IO`. */
  seal(): void
  /** Removes what was written. */
  drop(): Promise<void>
}

/** Throws `EXISTS` if `path` is there and is not an empty directory. */
export function directorySink(path: string): DirectorySink {
  const target = resolve(path)
  refuseUnlessEmpty(target)
  let temporary: string
  try {
    temporary = mkdtempSync(join(dirname(target), `.${basename(target)}.partial-`))
  } catch (cause) {
    throw new Fault('IO', `cannot make a directory in ${dirname(target)} (${(cause as NodeJS.ErrnoException).code})`, {
      hint: 'it must exist and be writable',
      cause,
    })
  }
  const files = new Set<FileHandle>()
  return {
    async open(name) {
      const file = await open(join(temporary, name), 'wx', 0o600).catch(ioFault(join(path, name)))
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
    seal() {
      refuseUnlessEmpty(target)
      try {
        renameSync(temporary, target)
      } catch (cause) {
        ioFault(path)(cause)
      }
    },
    async drop() {
      for (const file of files) await file.close().catch(() => {})
      rmSync(temporary, { recursive: true, force: true })
    },
  }
}

function refuseUnlessEmpty(path: string): void {
  const found = lstatSync(path, { throwIfNoEntry: false })
  if (found === undefined) return
  if (found.isDirectory() && found.dev !== statSync(dirname(path)).dev) {
    throw new Fault('EXISTS', `${path} is a mount point`, { hint: 'name a directory below it that does not exist yet' })
  }
  if (found.isDirectory() && readdirSync(path).length === 0) return
  throw new Fault('EXISTS', `${path} is there already and is not an empty directory`, {
    hint: 'name a directory that does not exist yet',
  })
}

/** Throws the `IO` fault of an error at `path`. */
export function ioFault(path: string): (cause: unknown) => never {
  return (cause) => {
    const code = (cause as NodeJS.ErrnoException).code ?? 'unknown error'
    throw new Fault('IO', `${path}: ${code}`, {
      cause,
      ...(code === 'ENOSPC' ? { hint: 'make room on that file system, or write elsewhere' } : {}),
    })
  }
}

/** The images of a directory that `criu dump -D` wrote: its regular files `*.img`, inventory.img last, as CRIU does. */
export function directorySource(path: string): ImageSource {
  const names = listImages(path)
  if (lstatSync(join(path, PARENT), { throwIfNoEntry: false }) !== undefined) {
    throw new Fault('USAGE', `${path} is an incremental dump: its pages are partly in its parent`, {
      hint: 'flatten it',
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

/** A file up to this is read at once: a stream takes five turns of Node's threads, and of such files there are ten or more in a dump. */
const SMALL_FILE = 2 ** 16

/** One file in pieces. Throws `IO`. */
export async function* piecesOf(file: string): AsyncGenerator<Buffer> {
  try {
    const small = statSync(file).size <= SMALL_FILE ? readFileSync(file) : undefined
    if (small === undefined) yield* createReadStream(file, { highWaterMark: MOST_DATA }) as AsyncIterable<Buffer>
    else if (small.length > 0) yield small
  } catch (cause) {
    ioFault(file)(cause)
  }
}

/** The names of the images in a directory, inventory.img last. Throws `MISSING`, `NAME` or `FAILED_DUMP`. */
export function listImages(path: string): ImageName[] {
  let files: ReturnType<typeof entries>
  try {
    files = entries(path)
  } catch (cause) {
    throw new Fault('MISSING', `cannot read the directory ${path} (${(cause as NodeJS.ErrnoException).code})`, {
      cause,
    })
  }
  const images = files.filter((file) => file.name.endsWith('.img'))
  const odd = images.find((file) => !file.isFile())
  if (odd !== undefined) {
    throw new Fault('MISSING', `${join(path, odd.name)} is not a regular file`, { hint: 'put the image itself there' })
  }
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
