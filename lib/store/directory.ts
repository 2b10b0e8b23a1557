/** The images in a directory that CRIU wrote: its files are opened, read and listed. */
import { closeSync, constants, createReadStream, fstatSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Fault, type FaultCode } from '../fault.ts'
import { MOST_DATA } from '../format/frame.ts'
import { type ImageName, INVENTORY, imageName } from '../format/names.ts'
import { openRegularFile } from '../kernel/own-file.ts'

/** Returns what `work` returns. Throws what `faultOf` makes of an error that `work` throws. */
export function orFault<Result>(work: () => Result, faultOf: (cause: unknown) => unknown): Result {
  try {
    return work()
  } catch (cause) {
    throw faultOf(cause)
  }
}

/** Returns a function that makes a Fault of a system error. Its message is `what`, and the errno in brackets. */
export function faultBy(code: FaultCode, what: string, hint?: string): (cause: unknown) => Fault {
  return (cause) => {
    const { code: errno } = cause as NodeJS.ErrnoException
    return new Fault(code, `${what} (${errno})`, { cause, ...(hint !== undefined && { hint }) })
  }
}

/** Returns a function that throws the error it gets as a Fault `IO` at `path`. A Fault is thrown as it is. */
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
  return orFault(() => readAndClose(fd), ioFault(file))
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
  return orFault(
    () => openRegularFile(file, constants.O_RDONLY | constants.O_NOFOLLOW),
    (cause) => (cause instanceof Fault ? oddFault(file) : ioFault(file)(cause)),
  )
}

function oddFault(file: string): Fault {
  return new Fault('MISSING', `${file} is not a regular file`, { hint: 'put the image itself there' })
}

/** Lists the images in a directory, inventory.img last. Throws `MISSING`, `NAME` or `FAILED_DUMP`. */
export function listImages(path: string): ImageName[] {
  const files = orFault(() => readdirSync(path, { withFileTypes: true }), unreadable(path))
  const images = files.filter((file) => file.name.endsWith('.img'))
  const odd = images.find((file) => !file.isFile())
  if (odd !== undefined) throw oddFault(join(path, odd.name))
  const names = images.map((file) => imageName(file.name))
  if (!names.includes(INVENTORY)) {
    throw new Fault('FAILED_DUMP', `no ${INVENTORY} in ${path}`, {
      hint: 'name a directory that criu dump -D finished',
    })
  }
  return [...names.filter((name) => name !== INVENTORY).sort(), INVENTORY]
}

/** Returns a function that makes of an error the Fault `MISSING` for a directory that cannot be read. */
export function unreadable(path: string): (cause: unknown) => Fault {
  return faultBy('MISSING', `cannot read the directory ${path}`)
}
