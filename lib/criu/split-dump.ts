/**
 * A dump by `criu dump --stream --page-server` (CRIU up to 4.2; 4.3 refuses the pair): its pages come by our page server port, and all other images by the
 * stream. Joined they are one full dump.
 *
 * CRIU writes to both at once and waits where one of them is full, so neither is kept waiting for the other. inventory.img, by which a dump is known to be complete,
 * goes on when the pages are at an end.
 */
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { INVENTORY } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import { type Deferred, defer, rejectWhenAborted } from '../stream/wait.ts'
import type { IncomingDump } from './incoming-dump.ts'
import { type PageServer, SocketPageServer } from './page-server.ts'

/** Those who stream to one proxy, and those whose pages come to its port. */
export interface SplitDumps {
  /** The criu of this number has connected to the stream. */
  stream(pid: number): DumpHalf
  /** It streams to us, and has not ended. */
  streams(pid: number): boolean
  /** Its pages come by `socket`, which is closed. Throws `REFUSED` where its stream does not come to us, or goes on without pages. */
  pages(pid: number, socket: Fd): Promise<void>
}

export interface DumpHalf {
  /** The same with its pages. Its images throw `REFUSED` where they do not come to us. */
  join(criu: IncomingDump): IncomingDump
  /** It goes on without pages: those that come, or are here, are refused. */
  refuse(): void
  /** No more of it comes. */
  end(): void
}

interface Meeting {
  readonly server: Deferred<PageServer>
  /** Pages are here, or none are taken. */
  closed: boolean
}

/** CRIU connects to the stream before it does to the page server, and to that before it opens an image: so the other is on its way, or never comes. */
const MEET_MS = 2000

/** `listens`: whether there is a port for pages. Nobody is waited for once `signal` has come. */
export function openSplitDumps(listens: boolean, signal: AbortSignal): SplitDumps {
  const meetings = new Map<number, Meeting>()
  /** Pages that were heard before their stream. */
  const early = new Map<number, Deferred<void>>()

  async function streamOf(pid: number): Promise<void> {
    const came = defer<void>()
    early.set(pid, came)
    await Promise.race([came.promise, setTimeout(MEET_MS, undefined, { ref: false, signal })]).catch(() => {})
    if (early.get(pid) === came) early.delete(pid)
  }

  return {
    stream(pid) {
      const meeting: Meeting = { server: defer(), closed: !listens }
      const { server } = meeting
      if (!listens) server.reject(splitDumpFault())
      meetings.set(pid, meeting)
      early.get(pid)?.resolve()
      const refuse = (): void => {
        meeting.closed = true
        server.reject(splitDumpFault())
        server.promise.then((pages) => pages.destroy(splitDumpFault())).catch(() => {})
      }
      return {
        join: (criu) => ({ ...criu, images: (handOver) => joined(criu.images(handOver), server.promise) }),
        refuse,
        end() {
          if (meetings.get(pid) === meeting) meetings.delete(pid)
          refuse()
        },
      }
    },
    streams: (pid) => meetings.has(pid),
    async pages(pid, socket) {
      if (!meetings.has(pid)) await streamOf(pid)
      const meeting = meetings.get(pid)
      if (meeting === undefined || meeting.closed) {
        closeFd(socket)
        throw splitDumpFault()
      }
      meeting.closed = true
      meeting.server.resolve(new SocketPageServer(socket, { hasParent: () => false }))
    },
  }
}

/** A dump whose images take two ways, of which one does not lead to us. */
export function splitDumpFault(): Fault {
  return new Fault(
    'REFUSED',
    'criu sends images by --stream and pages by --page-server, and not all of them come here',
    {
      hint: 'both must come to the same proxy, and stand on the command line; or leave one of the two away',
    },
  )
}

function joined(stream: ImageSource, arriving: Promise<PageServer>): ImageSource {
  const stop = new AbortController()
  const stopped = rejectWhenAborted(stop.signal)
  stopped.catch(() => {})
  const came = defer<PageServer>()
  /** The pages are at an end. */
  const closed = defer<void>()
  let server: PageServer | undefined

  async function meet(): Promise<void> {
    const late = setTimeout(MEET_MS, undefined, { ref: false })
    server = await Promise.race([arriving, late, stopped])
    if (server === undefined) throw splitDumpFault()
    came.resolve(server)
  }

  async function* streamed(): AsyncGenerator<OpenImage> {
    for await (const image of stream.images) {
      try {
        if (server === undefined) await meet()
        if (image.name === INVENTORY) await Promise.race([closed.promise, stopped])
      } catch (error) {
        release(image)
        throw error
      }
      yield image
    }
    came.reject(unfinished())
  }

  async function* paged(): AsyncGenerator<OpenImage> {
    const pages = await Promise.race([came.promise, stopped])
    for await (const { name, body } of pages.images) {
      if (body.kind !== 'pieces') continue
      const over = defer<void>()
      yield { name, body: { kind: 'pieces', pieces: thenTell(body.pieces, over.resolve), meanwhile: true } }
      await Promise.race([over.promise, stopped])
    }
    closed.resolve()
    // What else it has written is in its pipes: one with our script waits for us at post-dump, and one without waits for nobody.
    await pages.answerClose(true)
  }

  return {
    images: merged([streamed(), paged()]),
    destroy(reason) {
      stop.abort(reason)
      stream.destroy(reason)
      server?.destroy(reason)
    },
  }
}

function unfinished(): Fault {
  return new Fault('FAILED_DUMP', 'criu ended before its dump began', {
    hint: "the process was not moved; see the dump's own log",
  })
}

async function* thenTell(pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, tell: () => void) {
  try {
    yield* pieces
  } finally {
    tell()
  }
}

function release({ body }: OpenImage): void {
  if (body.kind === 'pipe') closeFd(body.fd)
}

/** The images of all sources as they are opened. */
async function* merged(sources: AsyncGenerator<OpenImage>[]): AsyncGenerator<OpenImage> {
  const next = async (source: AsyncGenerator<OpenImage>) => ({ source, ...(await source.next()) })
  const opening = new Map(sources.map((source) => [source, next(source)]))
  try {
    while (opening.size > 0) {
      const { source, done, value } = await Promise.race(opening.values())
      opening.delete(source)
      if (done === true) continue
      yield value
      opening.set(source, next(source))
    }
  } finally {
    // Whoever takes no more takes none of these.
    for (const other of opening.values()) other.then(({ done, value }) => done || release(value)).catch(() => {})
    for (const source of sources) source.return(undefined).catch(() => {})
  }
}
