/**
 * Serve: an image sink that is CRIU itself, restoring with `--stream`.
 *
 * CRIU connects once to `streamer-serve.sock` in its images directory (-D), asks for one image after the other by name, is told
 * whether it exists, and then sends one dummy byte that carries the write end of a pipe, which we fill. It asks for many
 * that do not exist; that is how it finds out. It may leave a pipe half read and ask for the next: so every image is written
 * by a loop of its own, and a reader that closed its pipe early has had enough, which is no error (criu/img-streamer.c, 4.1.1).
 *
 * Extents are lent to the pipe with vmsplice, so that CRIU's read() is the only copy; small pieces are written. Pagemaps are written anew, for any release.
 */
import { Fault } from '../fault.ts'
import type { ImageName } from '../format/names.ts'
import { encodeReply } from '../format/streamer.ts'
import { enlargePipe, type Fd, setNonBlocking } from '../kernel/fd.ts'
import { closeFd, interrupt } from '../kernel/readiness.ts'
import { vmspliceAll, writeAll } from '../kernel/transfer.ts'
import { pagemapPattern } from '../store/directory-chain.ts'
import { forEveryRelease } from '../store/pagemap-compat.ts'
import type { Piece, StoredImage } from '../store/stored-image.ts'
import { spliceAllowed } from '../stream/link.ts'
import { readPipe, readRequest } from './capture.ts'

export const SERVE_SOCKET = 'streamer-serve.sock'

/** Smaller pieces, if they are not pages, share pages with other images and are copied. Not tuned. */
const LEAST_LENT = 64 * 2 ** 10
const LARGEST_COPIED = LEAST_LENT / 2
/** Bytes that are lent with one call: what a pipe of an unprivileged user holds, and at most 256 pieces. */
const ENOUGH_LENT = 2 ** 20

/** What fits into a pipe as CRIU made it, as most images do. */
const ENOUGH = 64 * 2 ** 10

/** What one client took. */
export interface Served {
  /** Images that it asked for and got to the end. */
  images: ImageName[]
  bytes: number
}

/**
 * Answers the CRIU at the other end of `socket` from the snapshot that `choose` gives; the first request waits for it.
 * `onTaken` is told of every piece that is in CRIU's pipe: the pipe holds its pages, our mapping of them may go.
 * Returns when CRIU closes the socket; throws `CRIU_PROTOCOL`, or what `choose` threw, or the signal's reason. The socket is
 * closed at the end.
 */
export async function serve(
  socket: Fd,
  choose: () => Promise<ReadonlyMap<ImageName, StoredImage>>,
  { signal, onTaken = () => {} }: { signal?: AbortSignal; onTaken?: (piece: Piece) => void } = {},
): Promise<Served> {
  const served: Served = { images: [], bytes: 0 }
  const running = new Set<Promise<void>>()
  let failure: unknown
  const interrupted = (): void => interrupt(socket, signal?.reason as Error)
  signal?.addEventListener('abort', interrupted)
  try {
    for (;;) {
      signal?.throwIfAborted()
      const name = await readRequest(socket)
      if (name === undefined) break
      const image = (await choose()).get(name)
      await writeAll(socket, encodeReply(image !== undefined))
      if (image === undefined) continue
      const pipe = await readPipe(socket, 'write')
      const task = fillPipe(pipe, image, served, onTaken)
        .catch((error: unknown) => {
          failure ??= error
        })
        .finally(() => running.delete(task))
      running.add(task)
    }
    await Promise.all(running)
    if (failure !== undefined) throw failure
    return served
  } finally {
    signal?.removeEventListener('abort', interrupted)
    closeFd(socket)
    await Promise.all(running)
  }
}

function lendable({ window, pages }: Piece): boolean {
  return pages === true || window.length >= LEAST_LENT
}

/** Pieces in the same order, those that can be lent with one call as one. */
function* together(pieces: Iterable<Piece>): Generator<Piece[]> {
  let lent: Piece[] = []
  let bytes = 0
  for (const piece of pieces) {
    if (lent.length > 0 && (bytes >= ENOUGH_LENT || !lendable(piece))) {
      yield lent
      lent = []
      bytes = 0
    }
    if (lendable(piece)) {
      lent.push(piece)
      bytes += piece.window.length
    } else yield [piece]
  }
  if (lent.length > 0) yield lent
}

/** Bytes that lie among other things of ours: in pieces that are copied and not lent. */
export function* copied(parts: Iterable<Uint8Array>): Generator<Piece> {
  for (const part of parts) {
    for (let at = 0; at < part.length; at += LARGEST_COPIED) {
      yield { address: 0n, window: part.subarray(at, at + LARGEST_COPIED) }
    }
  }
}

/** What CRIU gets of an image. */
export async function piecesFor({ name, pieces }: StoredImage): Promise<Iterable<Piece>> {
  const parts = pagemapPattern.test(name) ? await forEveryRelease(pieces) : undefined
  return parts === undefined ? pieces : copied(parts)
}

/** Writes all of an image into a pipe, and closes it. A reader that has had enough is no error. */
export async function fillPipe(
  pipe: Fd,
  image: StoredImage,
  served: Served,
  onTaken: (piece: Piece) => void,
): Promise<void> {
  try {
    setNonBlocking(pipe)
    if (image.size > ENOUGH) enlargePipe(pipe)
    for (const pieces of together(await piecesFor(image))) {
      const [first] = pieces
      if (spliceAllowed && first !== undefined && lendable(first)) await vmspliceAll(pieces, pipe)
      else for (const { window } of pieces) await writeAll(pipe, window)
      for (const piece of pieces) {
        served.bytes += piece.window.length
        onTaken(piece)
      }
    }
    served.images.push(image.name)
  } catch (error) {
    if (!(error instanceof Fault && error.code === 'LINK')) throw error
  } finally {
    closeFd(pipe)
  }
}
