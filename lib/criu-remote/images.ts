/**
 * The images of one `criu dump --remote` or `pre-dump --remote`, each of which comes over its own connection: an image
 * source.
 *
 * CRIU waits where its pipes are full, so each image is read as soon as it comes, whatever the link does. A large image
 * is passed on as it comes. A small one, as nearly all are, is kept until the end: it may be written again, or appended
 * to, and the next dump reads the pagemaps of this one. inventory.img is sent last, as criu writes it last.
 *
 * The end of an image is the end of its pipe. That no more images come is known from elsewhere (dumps.ts), which calls
 * `end`; images that are still being written then are waited for.
 */
import type { PageServer } from '../criu/page-server.ts'
import { Fault } from '../fault.ts'
import { MOST_IMAGES } from '../format/image-list.ts'
import { type ImageName, INVENTORY } from '../format/names.ts'
import { pagesPattern } from '../format/pagemap.ts'
import { enlargePipe, type Fd, isPipe, setNonBlocking } from '../kernel/fd.ts'
import { closeFd, interrupt } from '../kernel/readiness.ts'
import { readSome } from '../kernel/transfer.ts'
import { pagemapPattern } from '../store/directory-chain.ts'
import { openCondition } from '../stream/condition.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import { IDS, receiveImage } from './local-wire.ts'
import { protocolFault } from './messages.ts'

/** A larger image is passed on as it comes. Not tuned: a pagemap of 350,000 ranges is as large. */
const LARGEST_KEPT = 4 * 2 ** 20
/** Most bytes that are kept of one dump. */
const MOST_KEPT = 64 * 2 ** 20
const READ_BYTES = 64 * 2 ** 10

export class RemoteImages implements ImageSource {
  readonly images = this.#open()
  /** Notified of everything that a client sends. */
  readonly news = openCondition()
  /** Complete images that were kept. */
  readonly kept = new Map<ImageName, Buffer>()
  /** The names of all images that came. */
  readonly names = new Set<ImageName>()
  /** The snapshot ids of this dump and of the rounds before it: to be set before the first image is yielded. */
  ids: Buffer | undefined
  /** No more images come but those that are being written now. */
  isOver = false
  /** Large images that `images` has not yielded yet. */
  readonly #large: OpenImage[] = []
  readonly #passedOn = new Set<ImageName>()
  /** Images that are being written; by name, so that an append waits for what it appends to. */
  readonly #writing = new Map<ImageName, Promise<void>>()
  /** Descriptors that are being read. */
  readonly #reading = new Set<Fd>()
  /** Notified when `images` may go on, and with the first image. */
  readonly #changed = openCondition()
  /** Resolves with the first image, or with the end. */
  readonly begun = this.#changed.wait()
  #bytesKept = 0
  #failure: Error | undefined

  /** Takes an image, or with `append` more of one, from the client at the other end of `socket`, and closes that. */
  take(name: ImageName, append: boolean, socket: Fd): void {
    const objection = this.#objectionTo(name)
    if (objection !== undefined) this.destroy(objection)
    if (this.#failure !== undefined) return void closeFd(socket)
    this.names.add(name)
    this.#changed.notify()
    this.news.notify()
    const writing = (this.#writing.get(name) ?? Promise.resolve())
      .then(() => this.#receive(name, append, socket))
      .catch((error: Error) => this.destroy(error))
      .finally(() => {
        if (this.#writing.get(name) === writing) this.#writing.delete(name)
        this.#changed.notify()
      })
    this.#writing.set(name, writing)
  }

  /** No more images come but those that are being written now. */
  end(): void {
    this.isOver = true
    this.#changed.notify()
  }

  destroy(reason: Error): void {
    if (this.#failure !== undefined) return
    this.#failure = reason
    for (const fd of this.#reading) interrupt(fd, reason)
    for (const { body } of this.#large.splice(0)) if (body.kind === 'pipe') closeFd(body.fd)
    this.kept.clear()
    this.#changed.notify()
  }

  #objectionTo(name: ImageName): Error | undefined {
    const { names } = this
    if (this.isOver) return protocolFault(`${name} is written after the end of its dump`)
    if (name === IDS) return protocolFault(`no criu has an image ${name}`)
    if (names.size >= MOST_IMAGES && !names.has(name)) return protocolFault(`more than ${MOST_IMAGES} images`)
    return undefined
  }

  async #receive(name: ImageName, append: boolean, socket: Fd): Promise<void> {
    let fd = socket
    this.#reading.add(fd)
    try {
      this.#throwIfFailed()
      const { fd: from, begun } = await receiveImage(socket)
      this.#reading.delete(fd)
      fd = from
      this.#reading.add(fd)
      if (await this.#keep(name, append, fd, begun)) closeFd(fd)
    } catch (error) {
      closeFd(fd)
      throw error
    } finally {
      this.#reading.delete(fd)
    }
  }

  /**
   * Reads to the end, and returns true; or until it is too much to keep: then the image is passed on with its
   * descriptor.
   */
  async #keep(name: ImageName, append: boolean, fd: Fd, begun: Buffer): Promise<boolean> {
    if (this.#passedOn.has(name)) throw protocolFault(`${name} is written again, and has been sent on`)
    const before = this.kept.get(name) ?? Buffer.alloc(0)
    const parts = append ? [before, begun] : [begun]
    let size = parts.reduce((sum, part) => sum + part.length, 0)
    this.#bytesKept += size - before.length
    if (isPipe(fd)) setNonBlocking(fd)
    if (isPipe(fd) && pagesPattern.test(name)) enlargePipe(fd)
    for (;;) {
      this.#throwIfFailed()
      if (size > LARGEST_KEPT || this.#bytesKept > MOST_KEPT) break
      const buffer = Buffer.allocUnsafe(READ_BYTES)
      const got = await readSome(fd, buffer)
      this.news.notify()
      if (got === 0) {
        this.kept.set(name, Buffer.concat(parts))
        return true
      }
      parts.push(got < READ_BYTES / 2 ? Buffer.from(buffer.subarray(0, got)) : buffer.subarray(0, got))
      size += got
      this.#bytesKept += got
    }
    this.kept.delete(name)
    this.#passedOn.add(name)
    this.#large.push({ name, body: { kind: 'pipe', fd, begun: Buffer.concat(parts) } })
    return false
  }

  async *#open(): AsyncGenerator<OpenImage> {
    // The first image that is yielded tells that the tasks are frozen.
    await this.begun
    if (this.ids !== undefined) yield imageOf(IDS, this.ids)
    for (;;) {
      this.#throwIfFailed()
      const next = this.#large.shift()
      if (next !== undefined) {
        if (next.body.kind === 'pipe') this.#bytesKept -= next.body.begun?.length ?? 0
        yield next
      } else if (this.isOver && this.#writing.size === 0) break
      else await this.#changed.wait()
    }
    const last = [...this.kept.keys()].filter((name) => name !== INVENTORY)
    for (const name of this.kept.has(INVENTORY) ? [...last, INVENTORY] : last) {
      this.#throwIfFailed()
      yield imageOf(name, this.kept.get(name) as Buffer)
    }
  }

  #throwIfFailed(): void {
    if (this.#failure !== undefined) throw this.#failure
  }
}

function imageOf(name: ImageName, bytes: Buffer): OpenImage {
  return { name, body: { kind: 'pieces', pieces: [bytes] } }
}

/**
 * The images of a pre-dump, whose success nothing else tells: `images` throws `FAILED_DUMP` if there are no pagemaps,
 * or pages without their pagemap, as a criu that was killed leaves them.
 */
export function roundOf(source: RemoteImages): PageServer {
  async function* images(): AsyncGenerator<OpenImage> {
    yield* source.images
    const count = (pattern: RegExp): number => [...source.names].filter((name) => pattern.test(name)).length
    const pagemaps = count(pagemapPattern)
    if (pagemaps === 0 || count(pagesPattern) > pagemaps) throw unfinishedImages()
  }
  // CRIU waits for no answer to a pre-dump.
  const answerClose = async (): Promise<void> => {}
  return { images: images(), destroy: (reason) => source.destroy(reason), news: source.news, answerClose }
}

export function unfinishedImages(): Fault {
  return new Fault('FAILED_DUMP', 'criu ended before its images were complete', {
    hint: "the process was not moved; see the dump's own log",
  })
}
