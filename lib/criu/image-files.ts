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
import { Account } from '../store/accounting.ts'
import type { Pool } from '../store/pool.ts'
import type { StoredImage } from '../store/stored-image.ts'
import { piecesFor } from './serve.ts'
import { memoryDirectory } from './work-directory.ts'

type Images = ReadonlyMap<ImageName, StoredImage>

/** What CRIU would lose, or could not restore, if it read these images by `--stream`; undefined if nothing. */
export function lostByStream(images: Images): string | undefined {
  for (const [name, image] of images) {
    if (/^nftables-\d+\.img$/.test(name) && image.size > 0) return 'firewall rules (nftables)'
    if (/^userns-\d+\.img$/.test(name)) return 'a user namespace'
    if (/^mm-\d+\.img$/.test(name) && hasPrivateHugePages(bytesOf(image))) return 'private memory of huge pages'
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
  const bytes = [...images.values()].reduce((sum, { size }) => sum + size, 0)
  const secret = memoryDirectory(bytes)
  const files = {
    path: join(secret.path, 'images'),
    /** Removes the files. May be called twice. */
    remove(): void {
      secret.remove()
      account.close()
    },
  }
  try {
    account.add(bytes)
    mkdirSync(files.path)
    chmodSync(files.path, 0o755)
    for (const image of images.values()) {
      signal.throwIfAborted()
      await writeFile(join(files.path, image.name), image)
    }
    return files
  } catch (error) {
    files.remove()
    throw error
  }
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
