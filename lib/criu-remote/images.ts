/**
 * The images of one `criu dump --remote` or `pre-dump --remote`, each of which comes by itself: an image source.
 *
 * criu waits where its pipes are full, so each is read from as soon as it is there, whatever the link does. An image of some size goes on as it
 * comes; a small one, as nearly all are, is kept until the end: it may be written again, or appended to, and the next dump reads the pagemaps
 * of this one. inventory.img goes last, as criu writes it.
 *
 * Images tell nothing about their end but the end of their pipe, and that there are no more is known from elsewhere (remote-dumps.ts): so `end` says it,
 * and those that are still being written then are waited for.
 */
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
import { IDS, receiveImage, unexpectedRequest } from './local-wire.ts'

/** A larger image goes on as it comes. Not tuned: a pagemap of 350,000 ranges is as large. */
const LARGEST_KEPT = 4 * 2 ** 20
/** All that are kept of one dump. */
const MOST_KEPT = 64 * 2 ** 20
const READ_BYTES = 64 * 2 ** 10

export interface RemoteImages extends ImageSource {
  /** Takes an image, or with `append` more of one, from the client at the other end of `socket`, which is closed. */
  take(name: ImageName, append: boolean, socket: Fd): void
  /** The ids of this dump and of the rounds before it, before the first image goes on. */
  name(ids: Buffer): void
  /** No more images come but those that are being written now. */
  end(): void
  readonly isOver: boolean
  /** Resolves with the first image, or with the end. */
  readonly begun: Promise<void>
  /** Complete images that were kept. */
  readonly kept: ReadonlyMap<ImageName, Buffer>
  /** All that came. */
  readonly names: ReadonlySet<ImageName>
}

export function remoteImages(): RemoteImages {
  const kept = new Map<ImageName, Buffer>()
  const names = new Set<ImageName>()
  /** What goes on as it comes, and nobody has taken yet. */
  const passedOn: OpenImage[] = []
  const wentOn = new Set<ImageName>()
  /** By name, so that an append comes after what it appends to. */
  const writing = new Map<ImageName, Promise<void>>()
  const reading = new Set<Fd>()
  const news = openCondition()
  const heard = openCondition()
  const first = openCondition()
  const begun = first.wait()
  let bytesKept = 0
  let ids: Buffer | undefined
  let ended = false
  let failure: Error | undefined

  function fail(reason: Error): void {
    if (failure !== undefined) return
    failure = reason
    for (const fd of reading) interrupt(fd, reason)
    for (const { body } of passedOn.splice(0)) if (body.kind === 'pipe') closeFd(body.fd)
    kept.clear()
    news.notify()
    first.notify()
  }

  /** Reads until the end, or until it is too much to be kept. */
  async function gather(name: ImageName, append: boolean, socket: Fd): Promise<void> {
    let fd = socket
    reading.add(fd)
    try {
      if (failure !== undefined) throw failure
      const incoming = await receiveImage(socket)
      reading.delete(fd)
      fd = incoming.fd
      reading.add(fd)
      if (await keep(name, append, fd, incoming.begun)) closeFd(fd)
    } catch (error) {
      closeFd(fd)
      throw error
    } finally {
      reading.delete(fd)
    }
  }

  /** Returns false where the image goes on, and whoever sends it closes the descriptor. */
  async function keep(name: ImageName, append: boolean, fd: Fd, begun: Buffer): Promise<boolean> {
    if (wentOn.has(name)) throw unexpectedRequest(`${name} is written again, and has been sent on`)
    const before = kept.get(name) ?? Buffer.alloc(0)
    const parts = append ? [before, begun] : [begun]
    let size = parts.reduce((sum, part) => sum + part.length, 0)
    bytesKept += size - before.length
    if (isPipe(fd)) setNonBlocking(fd)
    if (isPipe(fd) && pagesPattern.test(name)) enlargePipe(fd)
    for (;;) {
      if (failure !== undefined) throw failure
      if (size > LARGEST_KEPT || bytesKept > MOST_KEPT) break
      const room = Buffer.allocUnsafe(READ_BYTES)
      const got = await readSome(fd, room)
      heard.notify()
      if (got === 0) {
        kept.set(name, Buffer.concat(parts))
        return true
      }
      parts.push(got < READ_BYTES / 2 ? Buffer.from(room.subarray(0, got)) : room.subarray(0, got))
      size += got
      bytesKept += got
    }
    passOn(name, fd, Buffer.concat(parts))
    return false
  }

  function passOn(name: ImageName, fd: Fd, begun: Buffer): void {
    kept.delete(name)
    wentOn.add(name)
    passedOn.push({ name, body: { kind: 'pipe', fd, begun } })
  }

  function objectionTo(name: ImageName): Error | undefined {
    if (ended) return unexpectedRequest(`${name} is written after the end of its dump`)
    if (name === IDS) return unexpectedRequest(`no criu has an image ${name}`)
    if (names.size >= MOST_IMAGES && !names.has(name)) return unexpectedRequest(`more than ${MOST_IMAGES} images`)
    return undefined
  }

  async function* images(): AsyncGenerator<OpenImage> {
    // Not before: the first image says that the tasks are frozen.
    await begun
    if (ids !== undefined) yield { name: IDS, body: { kind: 'pieces', pieces: [ids] } }
    for (;;) {
      if (failure !== undefined) throw failure
      const next = passedOn.shift()
      if (next !== undefined) {
        if (next.body.kind === 'pipe') bytesKept -= next.body.begun?.length ?? 0
        yield next
      } else if (ended && writing.size === 0) break
      else await news.wait()
    }
    const last = [...kept.keys()].filter((name) => name !== INVENTORY)
    for (const name of kept.has(INVENTORY) ? [...last, INVENTORY] : last) {
      if (failure !== undefined) throw failure
      yield { name, body: { kind: 'pieces', pieces: [kept.get(name) as Buffer] } }
    }
  }

  return {
    images: images(),
    destroy: fail,
    news: heard,
    kept,
    names,
    begun,
    take(name, append, socket) {
      const objection = objectionTo(name)
      if (objection !== undefined) fail(objection)
      if (failure !== undefined) return void closeFd(socket)
      names.add(name)
      first.notify()
      heard.notify()
      const task = (writing.get(name) ?? Promise.resolve())
        .then(() => gather(name, append, socket))
        .catch(fail)
        .finally(() => {
          if (writing.get(name) === task) writing.delete(name)
          news.notify()
        })
      writing.set(name, task)
    },
    get isOver() {
      return ended
    },
    name(list) {
      ids = list
    },
    end() {
      ended = true
      news.notify()
      first.notify()
    },
  }
}

/**
 * The images of a pre-dump, which has no other sign of its success: `images` throws `FAILED_DUMP` for one that has no pagemaps, or pages without their
 * pagemap, which a criu that was killed leaves.
 */
export function roundOf(source: RemoteImages): ImageSource {
  async function* images(): AsyncGenerator<OpenImage> {
    yield* source.images
    const count = (pattern: RegExp): number => [...source.names].filter((name) => pattern.test(name)).length
    const pagemaps = count(pagemapPattern)
    if (pagemaps === 0 || count(pagesPattern) > pagemaps) throw unfinishedImages()
  }
  return { images: images(), destroy: source.destroy, news: source.news }
}

export function unfinishedImages(): Fault {
  return new Fault('FAILED_DUMP', 'criu ended before its images were complete', {
    hint: "the process was not moved; see the dump's own log",
  })
}
