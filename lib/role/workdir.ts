import { mkdirSync, mkdtempSync, rmdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { Fault } from '../fault.ts'
import type { Fd } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { listenUnix } from '../kernel/unix.ts'

/** A directory with one socket for CRIU in it. */
export interface WorkDir {
  path: string
  listener: Fd
  /** Closes and removes the socket, and the directory if we made it; who waits on it gets `reason`. May be called twice. */
  remove(reason?: Error): void
}

/** A directory of our own in `parent`, mode 0700, that `remove` takes away with all that is in it. */
export function privateDirectory(parent = tmpdir(), prefix = 'ferry-'): { path: string; remove: () => void } {
  const path = temporaryPath(parent, prefix)
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) }
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
 * Offers `socketName` in `path`, which is made if it is missing, or in a private temporary directory.
 * Throws `EXISTS`, `USAGE` or `IO`.
 */
export function openWorkDir(path: string | undefined, socketName: string): WorkDir {
  const temporary = path === undefined ? privateDirectory() : undefined
  const directory = temporary?.path ?? resolve(path ?? '')
  const socket = join(directory, socketName)
  try {
    if (temporary === undefined) makeDirectory(directory)
    const listener = listenUnix(socket)
    let there = true
    return {
      path: directory,
      listener,
      remove(reason) {
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

/** Makes the directory, mode 0700, if it is missing. Returns its path. Throws `IO`. */
export function openDirectory(path: string): string {
  const directory = resolve(path)
  makeDirectory(directory)
  return directory
}

/** Others may still use it. */
export function removeIfEmpty(directory: string): void {
  try {
    rmdirSync(directory)
  } catch {}
}

function makeDirectory(directory: string): void {
  const found = statSync(directory, { throwIfNoEntry: false })
  if (found?.isDirectory() === true) return
  try {
    mkdirSync(directory, { mode: 0o700 })
  } catch (cause) {
    throw new Fault('IO', `cannot make the directory ${directory} (${(cause as NodeJS.ErrnoException).code})`, {
      hint: 'choose another -D DIR',
      cause,
    })
  }
}
