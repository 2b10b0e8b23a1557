/**
 * Capture: an image source that is CRIU itself, dumping with `--stream`.
 *
 * CRIU connects once to `streamer-capture.sock` in its images directory (-D). For every image it sends a request with
 * the name and then one dummy byte that carries the read end of a pipe; what comes out of the pipe is the image. There
 * is no reply, and no end but the end of the connection, which looks the same for a dump that succeeded, failed or was
 * killed: that inventory.img came is the only proof (criu/img-streamer.c, 4.1.1).
 */
import { Fault } from '../fault.ts'
import { decodeLength, decodeRequest, LENGTH_BYTES } from '../format/streamer.ts'
import { type Fd, isPipeEnd, type PipeEnd } from '../kernel/fd.ts'
import { closeFd, interrupt, readable } from '../kernel/readiness.ts'
import { acceptSpeaker, hasNews, receiveWithFds } from '../kernel/unix.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import { type ImageStream, imageStream } from '../stream/image-stream.ts'
import { openWorkDir } from './work-directory.ts'

export const CAPTURE_SOCKET = 'streamer-capture.sock'

/**
 * The first stage of a sender: offers streamer-capture.sock in `directory`, which criu gets as -D, and gives the images
 * of the first criu that connects. Whether its dump succeeded only its exit code says: await that in `pack`'s
 * `confirm`. Throws `EXISTS`, `USAGE`, `MISSING` or `IO` where there can be no socket.
 */
export function capture(directory: string): ImageStream {
  const work = openWorkDir(directory, CAPTURE_SOCKET)
  let source: ImageSource | undefined
  async function* images(): AsyncGenerator<OpenImage> {
    try {
      source = new CapturedImages(await acceptSpeaker(work.listener))
      yield* source.images
    } finally {
      work.remove()
    }
  }
  return imageStream({
    images: images(),
    destroy(reason) {
      work.remove(reason)
      source?.destroy(reason)
    },
  })
}

/**
 * The images that the CRIU at the other end of `socket` dumps. The socket is closed at the end: when CRIU has closed
 * it, or when `complete` has resolved (CRIU waits at post-dump, with the socket open) and nothing more is there to be
 * read. `images` throws `CRIU_PROTOCOL` and `NAME`.
 */
export class CapturedImages implements ImageSource {
  readonly images: AsyncIterable<OpenImage>
  readonly #socket: Fd
  /** Why it was destroyed. */
  #failure: Error | undefined
  /** `images` is being read, and closes the socket. */
  #started = false
  #waiting = false
  /** CRIU has written all: what is not in the socket now does not come. */
  #complete = false

  constructor(socket: Fd, complete?: Promise<void>) {
    this.#socket = socket
    this.images = this.#read()
    complete?.then(
      () => {
        this.#complete = true
        if (this.#waiting) interrupt(socket, new Fault('ABORTED', 'complete'))
      },
      () => {},
    )
  }

  destroy(reason: Error): void {
    if (this.#failure !== undefined) return
    this.#failure = reason
    if (this.#started) interrupt(this.#socket, reason)
    else closeFd(this.#socket)
  }

  async *#read(): AsyncGenerator<OpenImage> {
    if (this.#failure !== undefined) throw this.#failure
    this.#started = true
    try {
      while (await this.#hasRequest()) {
        const request = await readRequest(this.#socket)
        if (request === undefined) return
        const fd = await readPipe(this.#socket, 'read')
        yield { name: request, body: { kind: 'pipe', fd } }
      }
    } finally {
      closeFd(this.#socket)
    }
  }

  /** Waits for a request, or the end of the connection. Returns false where CRIU is complete and nothing is there. */
  async #hasRequest(): Promise<boolean> {
    for (let waits = 0; ; waits++) {
      if (this.#failure !== undefined) throw this.#failure
      if (hasNews(this.#socket)) return true
      if (this.#complete) return false
      this.#waiting = true
      await readable(this.#socket, waits).catch((reason: unknown) => {
        if (!this.#complete) throw reason
      })
      this.#waiting = false
    }
  }
}

/** The name in the next request, or undefined at the end of the connection. Throws `CRIU_PROTOCOL` or `NAME`. */
export async function readRequest(socket: Fd) {
  const length = Buffer.alloc(LENGTH_BYTES)
  if (!(await fill(socket, length))) return undefined
  const body = Buffer.alloc(decodeLength(length))
  if (!(await fill(socket, body))) throw endedEarly()
  return decodeRequest(body)
}

/** The end of a pipe that follows a request: one byte with exactly one descriptor. Throws `CRIU_PROTOCOL`. */
export async function readPipe(socket: Fd, end: PipeEnd): Promise<Fd> {
  const { bytes, fds } = await receiveWithFds(socket, Buffer.alloc(1))
  const [fd] = fds
  if (bytes === 1 && fds.length === 1 && fd !== undefined && isPipeEnd(fd, end)) return fd
  for (const stray of fds) closeFd(stray)
  if (bytes === 0) throw endedEarly()
  const what = fds.length === 1 ? `a descriptor that is not the ${end} end of a pipe` : `${fds.length} descriptors`
  throw new Fault('CRIU_PROTOCOL', `a request with ${what}`)
}

async function fill(socket: Fd, into: Buffer): Promise<boolean> {
  for (let filled = 0; filled < into.length; ) {
    const { bytes, fds } = await receiveWithFds(socket, into.subarray(filled))
    for (const stray of fds) closeFd(stray)
    if (fds.length > 0) throw new Fault('CRIU_PROTOCOL', 'a descriptor in the middle of a request')
    if (bytes === 0 && filled === 0) return false
    if (bytes === 0) throw endedEarly()
    filled += bytes
  }
  return true
}

function endedEarly(): Fault {
  return new Fault('CRIU_PROTOCOL', 'the client of the CRIU socket left in the middle of a request')
}
