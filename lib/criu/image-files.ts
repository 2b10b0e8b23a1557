/**
 * Images as files, for a `criu restore -D` that we start.
 *
 * CRIU reads most images the same from a file and from the pipe that `--stream` gives it. It does not where it asks for
 * the size of an image (nftables rules: fstat(2) says 0 of a pipe, and CRIU loads no rule and reports success), reads
 * it at an offset (private memory of huge pages: preadv(2)), or opens another name in its directory as the root of a
 * user namespace, who may not enter ours (criu/net.c, mem.c and image.c, 4.1.1 to 4.3).
 */
import { chmodSync, mkdirSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { commandName } from '../command-name.ts'
import { Fault } from '../fault.ts'
import { hasPrivateHugePages } from '../format/mm.ts'
import type { ImageName } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { Account } from '../store/accounting.ts'
import { pagemapPattern } from '../store/directory-chain.ts'
import type { Pool } from '../store/pool.ts'
import type { StoredImage } from '../store/stored-image.ts'
import { piecesFor } from './serve.ts'
import { memoryDirectory } from './work-directory.ts'

type Images = ReadonlyMap<ImageName, StoredImage>

/** Bytes of images of mm that are looked through, some 40,000 areas. With more it could be anything, and files do. */
const MOST_MM = 2 * 2 ** 20

/** What CRIU would lose, or could not restore, if it read these images by `--stream`; undefined if nothing. */
export function lostByStream(images: Images): string | undefined {
  let left = MOST_MM
  for (const [name, image] of images) {
    if (/^nftables-\d+\.img$/.test(name) && image.size > 0) return 'firewall rules (nftables)'
    if (/^userns-\d+\.img$/.test(name)) return 'a user namespace'
    if (!/^mm-\d+\.img$/.test(name)) continue
    left -= image.size
    if (left < 0 || hasPrivateHugePages(bytesOf(image))) return 'private memory of huge pages'
  }
  return undefined
}

/** What to tell of a criu that restores by `--stream`, and of what is lost by that. */
export function lostFault(what: string): Fault {
  return new Fault('CRIU', `criu restore --stream cannot restore ${what}`, {
    hint: `${commandName('cache')} --restore and ${commandName('restore-from-socket')} can: they give criu files`,
  })
}

function bytesOf({ pieces }: StoredImage): Buffer {
  return Buffer.concat([...pieces].map(({ window }) => window))
}

/**
 * Writes the images into a directory in memory, which is counted to `pool`. The directory lies in a private one, and
 * lets the root of a user namespace in. Throws `MEMORY`, `IO` where there is no room, and the signal's reason.
 */
export async function writeImageFiles(images: Images, pool: Pool, signal: AbortSignal) {
  const account = new Account(pool)
  const bytes = [...images.values()].reduce((sum, image) => sum + roomFor(image), 0)
  const secret = memoryDirectory(bytes)
  const files = {
    path: join(secret.path, 'images'),
    /** A process that has this descriptor keeps the files from being taken for abandoned. */
    lock: secret.lock,
    /** Removes the files. May be called twice. */
    remove(): void {
      signal.removeEventListener('abort', files.remove)
      secret.remove()
      account.close()
    },
  }
  // Also right before this process ends; a criu that misses images is failed by its gate.
  signal.addEventListener('abort', files.remove, { once: true })
  try {
    account.add(bytes)
    mkdirSync(files.path)
    chmodSync(files.path, 0o755)
    for (const image of images.values()) {
      signal.throwIfAborted()
      await writeFile(join(files.path, image.name), image)
    }
    signal.throwIfAborted()
    return files
  } catch (error) {
    files.remove()
    throw error
  }
}

/** What the file takes of a tmpfs, at most; a pagemap grows when it is converted. */
function roomFor({ name, size }: StoredImage): number {
  return Math.ceil((pagemapPattern.test(name) ? 2 * size : size) / PAGE_BYTES) * PAGE_BYTES
}

async function writeFile(path: string, image: StoredImage): Promise<void> {
  try {
    const file = await open(path, 'wx')
    try {
      await file.chmod(0o644)
      for (const { window } of await piecesFor(image)) {
        for (let done = 0; done < window.length; ) {
          done += (await file.write(window, done, window.length - done)).bytesWritten
        }
      }
    } finally {
      await file.close()
    }
  } catch (cause) {
    if (cause instanceof Fault) throw cause
    throw new Fault('IO', `cannot write ${path} (${(cause as NodeJS.ErrnoException).code})`, {
      hint: 'make room there: images lie there for as long as criu restores them',
      cause,
    })
  }
}
