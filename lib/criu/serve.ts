/**
 * An image sink that is CRIU itself, restoring with `--stream`.
 *
 * CRIU connects once to `streamer-serve.sock` in its images directory (-D), asks for one image after the other by name,
 * is told whether it exists, and then sends one dummy byte that carries the write end of a pipe, which we fill. It asks
 * for many images that do not exist, to find out whether they do. It may leave a pipe half read and ask for the next
 * image: so every image is written by its own loop, and a reader that closes its pipe early is no error
 * (criu/img-streamer.c, 4.1.1).
 *
 * Extents are lent to the pipe with vmsplice, so that CRIU's read() is the only copy; small pieces are written.
 * Pagemaps are converted to a form that every CRIU release reads.
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

/** Bytes: smaller pieces, if they are not pages, share memory pages with other images and are copied. Not tuned. */
const LEAST_LENT = 64 * 2 ** 10
const LARGEST_COPIED = LEAST_LENT / 2
/** Bytes that are lent with one call, at most 256 pieces: as many as a pipe of an unprivileged user holds. */
const ENOUGH_LENT = 2 ** 20

/** Bytes that fit into a pipe as CRIU makes it; most images do. */
const ENOUGH = 64 * 2 ** 10

export interface Served {
  /** The images that CRIU took to their end. */
  images: ImageName[]
  bytes: number
}

/**
 * Answers the CRIU at the other end of `socket` from the snapshot that `choose` returns, from the first request on.
 * Calls `onTaken` for every piece that is in CRIU's pipe: the pipe holds its pages, and our mapping of them may go.
 * Returns when CRIU closes the socket. Throws `CRIU_PROTOCOL`, what `choose` throws, and the signal's reason. Closes
 * the socket at the end.
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
  signal?.addEventListener('abort', interrupted, { once: true })
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

/** Groups the pieces that can be lent with one call; the order stays. */
function* grouped(pieces: Iterable<Piece>): Generator<Piece[]> {
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

/** Cuts bytes that share memory pages with other data of ours into pieces that are small enough to be copied. */
export function* copied(parts: Iterable<Uint8Array>): Generator<Piece> {
  for (const part of parts) {
    for (let at = 0; at < part.length; at += LARGEST_COPIED) {
      yield { address: 0n, window: part.subarray(at, at + LARGEST_COPIED) }
    }
  }
}

/** The pieces of an image as CRIU gets it: pagemaps are converted. */
export async function piecesFor({ name, pieces }: StoredImage): Promise<Iterable<Piece>> {
  const parts = pagemapPattern.test(name) ? await forEveryRelease(pieces) : undefined
  return parts === undefined ? pieces : copied(parts)
}

/** Writes an image into a pipe, and closes the pipe. A reader that closes it early is no error. */
export async function fillPipe(
  pipe: Fd,
  image: StoredImage,
  served: Served,
  onTaken: (piece: Piece) => void,
): Promise<void> {
  try {
    setNonBlocking(pipe)
    if (image.size > ENOUGH) enlargePipe(pipe)
    for (const pieces of grouped(await piecesFor(image))) {
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
