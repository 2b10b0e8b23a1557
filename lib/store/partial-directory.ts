/**
 * A directory that has its name only when all files are in it.
 *
 * It may be made below a directory of somebody else, who can then rename it and put a link in its place. So nothing is
 * found by its path: the parent and the new directory are opened once, and what is made, renamed or removed is so by
 * these descriptors. At the end what has the name must be what was written.
 */
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  renameSync,
  rmdirSync,
  unlinkSync,
} from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { Fault } from '../fault.ts'
import { renameNew } from '../kernel/rename.ts'
import { userName } from '../kernel/trusted-path.ts'

export interface PartialDirectory {
  /** Makes a file in it, mode 0600. Rejects with what open(2) says. */
  create(name: string): Promise<FileHandle>
  /** Gives it its name. Throws `EXISTS` or `IO`. */
  seal(): void
  /** Removes what was written, unless it was sealed. May be called twice. */
  drop(): void
}

const { O_DIRECTORY, O_NOFOLLOW, O_RDONLY } = constants
/** For its name alone: it may be a directory that we cannot list. */
const O_PATH = 0o10000000

/** Throws `EXISTS` if `path` is there and is not an empty directory, `IO` if nothing can be made beside it. */
export function partialDirectory(path: string): PartialDirectory {
  const target = resolve(path)
  const [folder, name] = [dirname(target), basename(target)]
  const parent = openParent(folder)
  const beside = (entry: string): string => join(descriptorPath(parent), entry)
  let made: number | undefined
  let temporary = ''
  try {
    refuseUnlessEmpty(beside(name), target, parent)
    temporary = basename(mkdtempSync(beside(`.${name}.partial-`)))
    made = openSync(beside(temporary), O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
    refuseUnlessFresh(made, join(folder, temporary))
  } catch (cause) {
    if (made !== undefined) closeSync(made)
    closeSync(parent)
    throw cause instanceof Fault ? cause : unmade(folder, cause)
  }
  const directory = made
  const written: string[] = []
  let isOpen = true

  function isOurs(at: string): boolean {
    const own = fstatSync(directory)
    try {
      const found = lstatSync(at)
      return found.ino === own.ino && found.dev === own.dev
    } catch {
      return false
    }
  }

  /** Where an empty directory is replaced, and nothing else: the file system knows no better. */
  function renamePlainly(): void {
    try {
      renameSync(beside(temporary), beside(name))
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException
      throw new Fault('IO', `cannot give ${target} its name (${code})`, { cause })
    }
  }

  function close(): void {
    isOpen = false
    closeSync(directory)
    closeSync(parent)
  }

  /** It has another name where somebody has renamed it. */
  function removeDirectory(): void {
    const own = (entry: string): boolean => isOurs(beside(entry))
    const entry = [temporary, name].find(own) ?? readdirSync(beside('.')).find(own)
    if (entry !== undefined) rmdirSync(beside(entry))
  }

  return {
    async create(file) {
      if (!isOpen) throw new Fault('IO', `${path} was dropped`)
      const handle = await open(join(descriptorPath(directory), file), 'wx', 0o600)
      written.push(file)
      return handle
    },
    seal() {
      if (!isOurs(beside(temporary))) throw exchanged(join(folder, temporary))
      if (refuseUnlessEmpty(beside(name), target, parent)) makeWay(beside(name), target)
      const became = renameNew(parent, temporary, name)
      if (became === 'in the way') throw inTheWay(target)
      if (became === 'unknown') renamePlainly()
      if (!isOurs(target)) throw exchanged(target)
      close()
    },
    drop() {
      if (!isOpen) return
      try {
        for (const file of written) unlinkSync(join(descriptorPath(directory), file))
        removeDirectory()
      } catch {
        // Somebody else has removed it, or keeps us from it.
      }
      close()
    },
  }
}

function descriptorPath(directory: number): string {
  return `/proc/self/fd/${directory}`
}

function openParent(folder: string): number {
  try {
    return openSync(folder, O_PATH | O_DIRECTORY)
  } catch (cause) {
    throw unmade(folder, cause)
  }
}

/** `path` is for messages. Whether there is an empty directory `at` that name in `parent`. */
function refuseUnlessEmpty(at: string, path: string, parent: number): boolean {
  const found = lstatSync(at, { throwIfNoEntry: false })
  if (found === undefined) return false
  if (found.isDirectory() && found.dev !== fstatSync(parent).dev) {
    throw new Fault('EXISTS', `${path} is a mount point`, { hint: 'name a directory below it that does not exist yet' })
  }
  if (found.isDirectory() && readdirSync(at).length === 0) return true
  throw inTheWay(path)
}

/** Ours and empty; nobody else can put anything into it. */
function refuseUnlessFresh(directory: number, path: string): void {
  const { uid, mode } = fstatSync(directory)
  if (uid !== process.geteuid?.()) {
    const hint = 'name a directory on a file system that keeps owners'
    throw new Fault('IO', `${path}, made just now, belongs to ${userName(uid)}`, { hint })
  }
  if ((mode & 0o022) !== 0 || readdirSync(descriptorPath(directory)).length > 0) throw exchanged(path)
}

function makeWay(at: string, path: string): void {
  try {
    rmdirSync(at)
  } catch {
    throw inTheWay(path)
  }
}

function inTheWay(path: string): Fault {
  return new Fault('EXISTS', `${path} is there already and is not an empty directory`, {
    hint: 'name a directory that does not exist yet',
  })
}

function exchanged(path: string): Fault {
  return new Fault('IO', `${path} is not what was written: somebody has exchanged it`, {
    hint: 'name a directory below one that only you can write to',
  })
}

function unmade(folder: string, cause: unknown): Fault {
  return new Fault('IO', `cannot make a directory in ${folder} (${(cause as NodeJS.ErrnoException).code})`, {
    hint: 'it must exist and be writable',
    cause,
  })
}
