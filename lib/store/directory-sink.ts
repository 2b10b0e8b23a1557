/**
 * Writes images into a directory, as CRIU itself writes them. It gets its name only when all files are in it and
 * verified. Its mode is 0700, that of its files 0600. So a failed run leaves nothing, and nobody else reads the images.
 *
 * It may be made below a directory of another user, who can then rename it and put a link in its place. So nothing is
 * found by its path: the parent and the new directory are opened once, and files and names are made and removed by
 * these descriptors. At the end the directory with the name must be the one that was written.
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
import { MOST_DATA } from '../format/frame.ts'
import type { ImageName } from '../format/names.ts'
import { openPath, renameNew } from '../kernel/rename.ts'
import { userName } from '../kernel/trusted-path.ts'
import type { ImageSink, ImageWriter } from '../stream/image.ts'
import { faultBy, ioFault, orFault } from './directory.ts'

const { O_DIRECTORY, O_NOFOLLOW, O_RDONLY } = constants

export class DirectorySink implements ImageSink {
  /** The path as the caller gave it, and made absolute. */
  readonly #path: string
  readonly #target: string
  /** The directory that it is made in, and its name there. */
  readonly #folder: string
  readonly #name: string
  /** The name until `seal`. */
  readonly #temporary: string
  /** Descriptors of `#folder` and of the directory itself. */
  readonly #parent: number
  readonly #directory: number
  /** Files that were made in it, and those of them that are open. */
  readonly #written: string[] = []
  readonly #files = new Set<FileHandle>()
  #isOpen = true

  /** Throws `EXISTS` if `path` is there and is not an empty directory, `IO` if nothing can be made beside it. */
  constructor(path: string) {
    this.#path = path
    this.#target = resolve(path)
    this.#folder = dirname(this.#target)
    this.#name = basename(this.#target)
    this.#parent = orFault(() => openPath(this.#folder), unmade(this.#folder))
    let made: number | undefined
    try {
      refuseUnlessEmpty(this.#beside(this.#name), this.#target, this.#parent)
      this.#temporary = basename(mkdtempSync(this.#beside(`.${this.#name}.partial-`)))
      made = openSync(this.#beside(this.#temporary), O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
      refuseUnlessFresh(made, join(this.#folder, this.#temporary))
    } catch (cause) {
      if (made !== undefined) closeSync(made)
      closeSync(this.#parent)
      throw cause instanceof Fault ? cause : unmade(this.#folder)(cause)
    }
    this.#directory = made
  }

  /** Makes a file in it, mode 0600. Rejects with `IO`, also after `seal` or `drop`. */
  async open(name: ImageName): Promise<ImageWriter> {
    if (!this.#isOpen) throw new Fault('IO', `${this.#path} was dropped`)
    const failed = ioFault(join(this.#path, name))
    const file = await open(join(descriptorPath(this.#directory), name), 'wx', 0o600).catch(failed)
    this.#written.push(name)
    this.#files.add(file)
    const scratch = Buffer.allocUnsafeSlow(MOST_DATA)
    return {
      room: () => scratch,
      async wrote(bytes) {
        for (let done = 0; done < bytes; ) {
          done += (await file.write(scratch, done, bytes - done).catch(failed)).bytesWritten
        }
      },
      end: async () => {
        this.#files.delete(file)
        await file.close().catch(failed)
      },
    }
  }

  /** Everything is there: gives the directory its name. Throws `EXISTS` or `IO`. */
  seal(): void {
    const [path, from, to] = [this.#target, this.#beside(this.#temporary), this.#beside(this.#name)]
    if (!this.#isAt(from)) throw exchanged(join(this.#folder, this.#temporary))
    if (refuseUnlessEmpty(to, path, this.#parent)) {
      orFault(
        () => rmdirSync(to),
        () => inTheWay(path),
      )
    }
    const became = renameNew(this.#parent, this.#temporary, this.#name)
    if (became === 'in the way') throw inTheWay(path)
    // A file system without RENAME_NOREPLACE: an empty directory is replaced at most.
    if (became === 'unknown') orFault(() => renameSync(from, to), faultBy('IO', `cannot give ${path} its name`))
    if (!this.#isAt(path)) throw exchanged(path)
    this.#close()
  }

  /** Removes what was written, unless it was sealed. May be called twice. */
  async drop(): Promise<void> {
    for (const file of this.#files) await file.close().catch(() => {})
    if (!this.#isOpen) return
    try {
      for (const file of this.#written) unlinkSync(join(descriptorPath(this.#directory), file))
      this.#remove()
    } catch {
      // Another user has removed it, or keeps us from it.
    }
    this.#close()
  }

  #beside(entry: string): string {
    return join(descriptorPath(this.#parent), entry)
  }

  /** Whether this path leads to the directory. */
  #isAt(path: string): boolean {
    const own = fstatSync(this.#directory)
    try {
      const found = lstatSync(path)
      return found.ino === own.ino && found.dev === own.dev
    } catch {
      return false
    }
  }

  /** Removes the directory, also where somebody has renamed it. */
  #remove(): void {
    const isOwn = (entry: string): boolean => this.#isAt(this.#beside(entry))
    const entry = [this.#temporary, this.#name].find(isOwn) ?? readdirSync(this.#beside('.')).find(isOwn)
    if (entry !== undefined) rmdirSync(this.#beside(entry))
  }

  #close(): void {
    this.#isOpen = false
    closeSync(this.#directory)
    closeSync(this.#parent)
  }
}

function descriptorPath(directory: number): string {
  return `/proc/self/fd/${directory}`
}

/**
 * Returns whether there is an empty directory `at` that name in `parent`. Throws `EXISTS` for anything else. `path` is
 * for messages.
 */
function refuseUnlessEmpty(at: string, path: string, parent: number): boolean {
  const found = lstatSync(at, { throwIfNoEntry: false })
  if (found === undefined) return false
  if (found.isDirectory() && found.dev !== fstatSync(parent).dev) {
    throw new Fault('EXISTS', `${path} is a mount point`, { hint: 'name a directory below it that does not exist yet' })
  }
  if (found.isDirectory() && readdirSync(at).length === 0) return true
  throw inTheWay(path)
}

/** Throws `IO` unless the directory is ours and empty, and nobody else can put anything into it. */
function refuseUnlessFresh(directory: number, path: string): void {
  const { uid, mode } = fstatSync(directory)
  if (uid !== process.geteuid?.()) {
    const hint = 'name a directory on a file system that keeps owners'
    throw new Fault('IO', `${path}, made just now, belongs to ${userName(uid)}`, { hint })
  }
  if ((mode & 0o022) !== 0 || readdirSync(descriptorPath(directory)).length > 0) throw exchanged(path)
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

function unmade(folder: string): (cause: unknown) => Fault {
  return faultBy('IO', `cannot make a directory in ${folder}`, 'it must exist and be writable')
}
