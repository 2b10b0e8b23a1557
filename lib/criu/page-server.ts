/**
 * Page server: an image source that is CRIU itself, dumping with `--page-server`. It brings the pages and their pagemaps; all other
 * images it leaves in its directory (-D).
 *
 * CRIU opens one pagemap after the other, and for each says where pages go and then the pages. Nothing in its records says how much
 * will come, and a set of changed pages may be one record a page: so whatever is there is read at once, up to a MiB, and the pages of a read are
 * moved together in its buffer. Answers are small and go out when they are asked for.
 *
 * The last answer is the caller's: CRIU waits for it with the tasks frozen (a dump) and exits 0 only when it was good. It is
 * said when what came is safe.
 *
 * Refused: splice(2) from the socket to where the pages rest. The digest has to read them, and records of 24 or 32 bytes stand between them.
 */
import { Fault } from '../fault.ts'
import { type ImageName, imageName } from '../format/names.ts'
import { closeReply, PageServerDecoder, type PageServerEvent } from '../format/page-server.ts'
import { encodePagemap, type PagemapEntry } from '../format/pagemap.ts'
import type { Fd } from '../kernel/fd.ts'
import { read } from '../kernel/libc.ts'
import { closeFd } from '../kernel/readiness.ts'
import { readSome, writeAll } from '../kernel/transfer.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'

/** As CRIU's own: its numbers begin there, to leave those below to the images that the dump writes itself (criu/image.c). */
const FIRST_PAGES_ID = 65537

export interface PageServerOptions {
  /** Whether the parent has a pagemap of that name: then CRIU leaves out what did not change since. */
  hasParent(name: ImageName): boolean
}

export interface PageServer extends ImageSource {
  /**
   * Answers CLOSE, after `images` has ended, and closes the socket: `true` says that everything is safe, and with `false` the dump fails and its
   * tasks run on. Throws `LINK` if CRIU is gone.
   */
  answerClose(ok: boolean): Promise<void>
}

/**
 * The pages that the CRIU at the other end of `socket` sends: for every pagemap `pages-N.img` while they come and then the pagemap, each to be taken to
 * its end before the next. `socket` is a UNIX or a TCP socket, and is closed at the end. `images` throws `CRIU_PROTOCOL` or `LIMIT`, or `FAILED_DUMP` when CRIU
 * leaves before it said CLOSE.
 */
export function pageServer(socket: Fd, { hasParent }: PageServerOptions): PageServer {
  let failure: Error | undefined
  let state: 'reading' | 'closing' | 'over' = 'reading'

  function shut(): void {
    if (state !== 'over') closeFd(socket, failure)
    state = 'over'
  }

  async function* events(): AsyncGenerator<PageServerEvent, void, void> {
    const decoder = new PageServerDecoder(hasParent)
    try {
      for (;;) {
        if (failure !== undefined) throw failure
        const got = await readSome(socket, decoder.room())
        if (got === 0) return decoder.end()
        for (const event of decoder.push(got)) {
          if (failure !== undefined) throw failure
          if (event.kind === 'reply') await writeAll(socket, event.bytes, { socket: true })
          else yield event
          if (event.kind === 'close') return
        }
      }
    } catch (error) {
      failure ??= asFailure(error as Error)
      shut()
      throw failure
    }
  }

  async function* images(): AsyncGenerator<OpenImage, void, void> {
    const coming = events()
    try {
      for (let pagesId = FIRST_PAGES_ID; ; pagesId++) {
        const { value: event } = await coming.next()
        if (event?.kind === 'close') break
        if (event?.kind !== 'open') throw failure ?? new Error('pages were not taken to their end')
        const pages = untilComplete(coming)
        yield { name: imageName(`pages-${pagesId}.img`), body: { kind: 'pieces', pieces: pages.pieces } }
        const entries = pages.entries()
        if (entries === undefined) throw failure ?? new Error('pages were not taken to their end')
        yield { name: event.name, body: { kind: 'pieces', pieces: encodePagemap(pagesId, entries) } }
      }
      if (failure !== undefined) throw failure
      state = 'closing'
    } finally {
      if (state !== 'closing') shut()
    }
  }

  return {
    images: images(),
    destroy(reason) {
      failure ??= reason
      shut()
    },
    async answerClose(ok) {
      if (failure !== undefined) throw failure
      if (state !== 'closing') throw new Error('CLOSE has not come, or was answered')
      try {
        // Of a CLOSE that came alone there may be a rest, and closing a TCP socket on it would lose the answer.
        read(socket, Buffer.alloc(8), 8)
        await writeAll(socket, closeReply(ok), { socket: true })
      } finally {
        shut()
      }
    },
  }
}

/** The pages of the pagemap that is open; its entries, when all have come. */
function untilComplete(coming: AsyncGenerator<PageServerEvent, void, void>): {
  pieces: AsyncIterable<Uint8Array>
  entries(): PagemapEntry[] | undefined
} {
  let entries: PagemapEntry[] | undefined
  async function* pieces(): AsyncGenerator<Uint8Array> {
    for (;;) {
      const { value: event } = await coming.next()
      if (event?.kind === 'complete') {
        entries = event.entries
        return
      }
      if (event?.kind !== 'pages') throw new Error('pages of no pagemap')
      yield event.bytes
    }
  }
  return { pieces: pieces(), entries: () => entries }
}

function asFailure(error: Error): Error {
  if (!(error instanceof Fault) || error.code !== 'LINK') return error
  return new Fault('FAILED_DUMP', `CRIU left the page server: ${error.message}`, { cause: error })
}
