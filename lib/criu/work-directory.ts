/** Directories that are ours: for the sockets that CRIU connects to, and for private and temporary files. */
import {
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmdirSync,
  rmSync,
  statfsSync,
  statSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { Fault } from '../fault.ts'
import { asFd, type Fd, tryLock } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { trustedPath } from '../kernel/trusted-path.ts'
import { connectUnix, listenUnix } from '../kernel/unix.ts'
import { noteMade } from '../made-directories.ts'
import { formatSize } from '../size.ts'

/** A directory with one socket for CRIU in it. */
export type WorkDir = ReturnType<typeof openWorkDir>
export type PrivateDirectory = NonNullable<ReturnType<typeof locked>>

/**
 * Makes a directory in `parent`, mode 0700, and locks it for as long as this process lives: see `abandoned`. Throws
 * `IO`.
 */
export function privateDirectory(parent: string, prefix: string): PrivateDirectory {
  for (;;) {
    const mine = locked(temporaryPath(parent, prefix))
    // Otherwise another process took it for abandoned before it was locked.
    if (mine !== undefined) return mine
  }
}

/** Locks and returns the directories in `parent` with such a name whose makers were killed. */
export function abandoned(parent: string, name: RegExp): PrivateDirectory[] {
  return readdirSync(parent)
    .filter((entry) => name.test(entry))
    .map((entry) => join(parent, entry))
    .filter((path) => {
      const found = lstatSync(path, { throwIfNoEntry: false })
      return found?.isDirectory() === true && found.uid === process.geteuid?.()
    })
    .flatMap((path) => locked(path) ?? [])
}

/** Undefined where the directory is gone, or another process has it. */
function locked(path: string) {
  let lock: number
  try {
    lock = openSync(path, 'r')
  } catch {
    return undefined
  }
  let open = true
  const release = (): void => {
    if (open) closeSync(lock)
    open = false
  }
  if (!tryLock(lock) || !existsSync(path)) {
    release()
    return undefined
  }
  return {
    path,
    /** Locks the directory for as long as any process has it. */
    lock: asFd(lock),
    /** Unlocks the directory and leaves it for `abandoned`. */
    release,
    /** Removes the directory with its contents. May be called twice. */
    remove(): void {
      if (open) rmSync(path, { recursive: true, force: true })
      release()
    },
  }
}

/**
 * Makes a private directory for temporary files, and removes those that killed commands of ours left. Throws `IO`, and
 * like `trustedPath`.
 */
export function temporaryDirectory(place = tmpdir()): PrivateDirectory {
  const parent = trustedPath(place, { parent: true, otherwise: 'name another directory with TMPDIR' })
  removeAbandoned(parent)
  return privateDirectory(parent, `criu-ferry.${process.pid}.`)
}

function removeAbandoned(parent: string): void {
  for (const left of abandoned(parent, /^criu-ferry\.\d+\.\w{6}$/)) left.remove()
}

const TMPFS_MAGIC = 0x01021994

/**
 * A temporary directory in memory, with room for `bytes`. Throws like `temporaryDirectory`, `MISSING` where there is no
 * tmpfs, and `IO` where none has room.
 */
export function memoryDirectory(bytes = 0): PrivateDirectory {
  const room = (path: string): number => {
    const { type, bavail, bsize } = statfsSync(path)
    return type === TMPFS_MAGIC ? bavail * bsize : -1
  }
  const places = ['/run', '/dev/shm', tmpdir()].filter((path) => existsSync(path) && room(path) >= 0)
  if (places.length === 0) {
    throw new Fault('MISSING', 'neither /run nor /dev/shm is a tmpfs, and nothing is to touch a disk', {
      hint: 'mount -t tmpfs tmpfs /dev/shm',
    })
  }
  for (const path of places) removeAbandoned(path)
  // What is large goes where most room is left.
  if (bytes > 0) places.sort((one, other) => room(other) - room(one))
  const [parent = ''] = places
  if (room(parent) < bytes) {
    throw new Fault('IO', `${places.join(' and ')} have no room for ${formatSize(bytes)}`, {
      hint: 'mount -o remount,size=SIZE /dev/shm',
    })
  }
  return temporaryDirectory(parent)
}

function temporaryPath(parent: string, prefix: string): string {
  try {
    return mkdtempSync(join(parent, prefix))
  } catch (cause) {
    throw new Fault('IO', `cannot make a directory in ${parent} (${(cause as NodeJS.ErrnoException).code})`, {
      hint: 'make room there, or name another one with TMPDIR',
      cause,
    })
  }
}

/**
 * Listens at `socketName` in `path`, which is made if it is missing, or in a private temporary directory. `prepare`
 * fills the directory before a client can connect. Throws `EXISTS`, `MISSING`, `IO`, `USAGE` where another user could
 * change what is there, and what `prepare` throws.
 */
export function openWorkDir(path: string | undefined, socketName: string, prepare = (_directory: string): void => {}) {
  const temporary = path === undefined ? temporaryDirectory() : undefined
  try {
    const directory = temporary?.path ?? openDirectory(path ?? '')
    const socket = join(directory, socketName)
    const listener = listenUnix(socket, () => prepare(directory))
    let there = true
    return {
      path: directory,
      listener,
      /**
       * Closes and removes the socket, and a temporary directory; an accept on it fails with `reason`. May be called
       * twice.
       */
      remove(reason?: Error): void {
        if (!there) return
        there = false
        closeFd(listener, reason)
        rmSync(socket, { force: true })
        temporary?.remove()
      },
    }
  } catch (error) {
    temporary?.remove()
    throw error
  }
}

const otherwise = 'choose another -D DIR'

/**
 * Makes the directory, mode 0700, if it is missing. Returns its path without symbolic links, on which only root and our
 * user can change anything. Throws like `trustedPath`, and `IO`.
 */
export function openDirectory(path: string): string {
  const wanted = resolve(path)
  const directory = join(trustedPath(dirname(wanted), { parent: true, otherwise }), basename(wanted))
  try {
    mkdirSync(directory, { mode: 0o700 })
    noteMade(directory)
  } catch (cause) {
    if (statSync(directory, { throwIfNoEntry: false })?.isDirectory() !== true) {
      throw new Fault('IO', `cannot make the directory ${directory} (${(cause as NodeJS.ErrnoException).code})`, {
        hint: otherwise,
        cause,
      })
    }
  }
  return trustedPath(directory, { otherwise })
}

/**
 * Connects to the socket `name` in `path`. Throws `MISSING`, with the message `nobody`, where no process listens, `IO`
 * where this user may not connect, and `USAGE` where another user could answer.
 */
export function connectWithin(path: string, name: string, nobody: string): Fd {
  try {
    return connectUnix(join(trustedPath(path, { otherwise }), name))
  } catch (cause) {
    const absent = cause instanceof Fault && (cause.code === 'LINK' || cause.code === 'MISSING')
    throw absent ? new Fault('MISSING', nobody, { cause }) : cause
  }
}

/** Removes the directory, unless other processes have files in it. */
export function removeIfEmpty(directory: string): void {
  try {
    rmdirSync(directory)
  } catch {}
}
