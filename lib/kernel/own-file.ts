/** Files that users name, or that we left: in their place may be a link, a FIFO, or what somebody else made. */
import { closeSync, constants, fstatSync, openSync } from 'node:fs'
import { Fault } from '../fault.ts'
import { userName } from './trusted-path.ts'

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY } = constants

/**
 * A descriptor for a regular file of our own user, opened with `flags` and never through a link. One to be written has
 * no other name, which somebody could have given it. Throws `EXISTS` for everything else, and what open(2) says.
 */
export function openOwnFile(path: string, flags: number, mode = 0o600): number {
  const fd = opened(path, flags | O_NOFOLLOW, mode)
  try {
    const { uid, nlink } = fstatSync(fd)
    if (uid !== process.geteuid?.()) throw inTheWay(path, `belongs to ${userName(uid)}`)
    if ((flags & (O_WRONLY | O_RDWR)) !== 0 && nlink > 1) throw inTheWay(path, 'has another name, too')
    return fd
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

/** A descriptor for reading a regular file. Throws `EXISTS` for what is none, and what open(2) says. */
export function openRegularFile(path: string, flags: number = O_RDONLY): number {
  return opened(path, flags, 0)
}

/** Where it is a FIFO this does not wait for its other end. */
function opened(path: string, flags: number, mode: number): number {
  let fd: number
  try {
    fd = foundOrMade(path, flags | O_NONBLOCK, mode)
  } catch (cause) {
    const { code = '' } = cause as NodeJS.ErrnoException
    if (code === 'ELOOP') throw inTheWay(path, 'is a link')
    // Nobody reads from the FIFO; a socket; a directory to be written to.
    if (code === 'ENXIO' || code === 'EISDIR') throw inTheWay(path, 'is no regular file')
    throw cause
  }
  if (fstatSync(fd).isFile()) return fd
  closeSync(fd)
  throw inTheWay(path, 'is no regular file')
}

/** In two steps: in a sticky directory the kernel says less of what cannot be opened, when it could also be made. */
function foundOrMade(path: string, flags: number, mode: number): number {
  if ((flags & O_CREAT) === 0 || (flags & O_EXCL) !== 0) return openSync(path, flags, mode)
  const found = flags & ~O_CREAT
  try {
    return openSync(path, found)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause
  }
  try {
    return openSync(path, flags | O_EXCL, mode)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause
    // Another of our daemons may have made it.
    return openSync(path, found)
  }
}

function inTheWay(path: string, what: string): Fault {
  return new Fault('EXISTS', `${path} ${what}`, { hint: 'name another file' })
}
