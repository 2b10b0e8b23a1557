/**
 * An image source that is CRIU itself, dumping with `--page-server`. CRIU sends pages and their pagemaps; all other
 * images it writes into its directory (-D).
 *
 * CRIU opens one pagemap after the other, and for each says where pages go and then sends the pages. Its records do not
 * say how much will come, and a set of changed pages may be one record a page: so everything that is there is read at
 * once, up to a MiB, and the pages of a read are moved together in its buffer. Answers are small and are sent when CRIU
 * asks for them.
 *
 * The last answer is the caller's: CRIU waits for it with the tasks frozen (a dump) and exits 0 only when it was good.
 * The caller gives it when the pages are safe.
 *
 * Refused: splice(2) from the socket to the final place of the pages. The digest has to read them, and records of 24 or
 * 32 bytes stand between them.
 */
import { Fault } from '../fault.ts'
import { type ImageName, imageName } from '../format/names.ts'
import { closeReply, PageServerDecoder, type PageServerEvent } from '../format/page-server.ts'
import { encodePagemap, type PagemapEntry } from '../format/pagemap.ts'
import type { Fd } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { readNow, readSome, writeAll } from '../kernel/transfer.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'

/** CRIU's own first number: those below it are for the images that the dump writes itself (criu/image.c). */
const FIRST_PAGES_ID = 65537

type HasParent = (name: ImageName) => boolean

export interface PageServer extends ImageSource {
  /**
   * Answers CLOSE, after `images` has ended, and closes the socket: `true` says that everything is safe, and with
   * `false` the dump fails and its tasks run on. Throws `LINK` if CRIU is gone.
   */
  answerClose(ok: boolean): Promise<void>
}

/**
 * The pages that the CRIU at the other end of `socket` sends: for every pagemap `pages-N.img` while the pages come, and
 * then the pagemap, each to be taken to its end before the next. `socket` is a UNIX or a TCP socket, and is closed at
 * the end. `images` throws `CRIU_PROTOCOL` or `LIMIT`, or `FAILED_DUMP` when CRIU leaves before its CLOSE.
 */
export class SocketPageServer implements PageServer {
  readonly images: AsyncGenerator<OpenImage, void, void>
  readonly #socket: Fd
  #failure: Error | undefined
  /** `closing`: CRIU waits for the answer to its CLOSE. `over`: the socket is closed. */
  #state: 'reading' | 'closing' | 'over' = 'reading'

  /** `hasParent`: whether the parent has a pagemap of that name: CRIU leaves out the pages that did not change then. */
  constructor(socket: Fd, hasParent: HasParent) {
    this.#socket = socket
    this.images = this.#images(hasParent)
  }

  destroy(reason: Error): void {
    this.#failure ??= reason
    this.#shut()
  }

  async answerClose(ok: boolean): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure
    if (this.#state !== 'closing') throw new Error('CLOSE has not come, or was answered')
    try {
      // A CLOSE that came alone may leave bytes unread, and closing a TCP socket on them would lose the answer.
      readNow(this.#socket, Buffer.alloc(8))
      await writeAll(this.#socket, closeReply(ok), { socket: true })
    } finally {
      this.#shut()
    }
  }

  #shut(): void {
    if (this.#state !== 'over') closeFd(this.#socket, this.#failure)
    this.#state = 'over'
  }

  /** Reads records, and answers those that ask. */
  async *#events(hasParent: HasParent): AsyncGenerator<PageServerEvent, void, void> {
    const decoder = new PageServerDecoder(hasParent)
    try {
      for (;;) {
        if (this.#failure !== undefined) throw this.#failure
        const got = await readSome(this.#socket, decoder.room())
        if (got === 0) return decoder.end()
        for (const event of decoder.push(got)) {
          if (this.#failure !== undefined) throw this.#failure
          if (event.kind === 'reply') await writeAll(this.#socket, event.bytes, { socket: true })
          else yield event
          if (event.kind === 'close') return
        }
      }
    } catch (error) {
      this.#failure ??= asFailure(error as Error)
      this.#shut()
      throw this.#failure
    }
  }

  async *#images(hasParent: HasParent): AsyncGenerator<OpenImage, void, void> {
    const events = this.#events(hasParent)
    try {
      for (let pagesId = FIRST_PAGES_ID; ; pagesId++) {
        const { value: event } = await events.next()
        if (event?.kind === 'close') break
        if (event?.kind !== 'open') throw this.#failure ?? new Error('pages were not taken to their end')
        const pagemap: { entries?: PagemapEntry[] } = {}
        const pieces = untilComplete(events, pagemap)
        yield { name: imageName(`pages-${pagesId}.img`), body: { kind: 'pieces', pieces } }
        if (pagemap.entries === undefined) throw this.#failure ?? new Error('pages were not taken to their end')
        yield { name: event.name, body: { kind: 'pieces', pieces: encodePagemap(pagesId, pagemap.entries) } }
      }
      if (this.#failure !== undefined) throw this.#failure
      this.#state = 'closing'
    } finally {
      if (this.#state !== 'closing') this.#shut()
    }
  }
}

/** The pages of the pagemap that is open. `pagemap` gets its entries when all pages have come. */
async function* untilComplete(
  events: AsyncGenerator<PageServerEvent, void, void>,
  pagemap: { entries?: PagemapEntry[] },
): AsyncGenerator<Uint8Array> {
  for (;;) {
    const { value: event } = await events.next()
    if (event?.kind === 'complete') {
      pagemap.entries = event.entries
      return
    }
    if (event?.kind !== 'pages') throw new Error('pages of no pagemap')
    yield event.bytes
  }
}

function asFailure(error: Error): Error {
  if (!(error instanceof Fault) || error.code !== 'LINK') return error
  return new Fault('FAILED_DUMP', `CRIU left the page server: ${error.message}`, { cause: error })
}
