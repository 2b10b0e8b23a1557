/**
 * Joins the two halves of a dump by `criu dump --stream --page-server` (CRIU up to 4.2; 4.3 refuses the pair): its
 * pages come to our page server port, and all other images by the stream.
 *
 * CRIU writes to both at once and waits where one of them is full, so neither half waits for the other. Only
 * inventory.img, by which a dump is known to be complete, is held back until the pages are at an end.
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

export type SplitDumps = ReturnType<typeof openSplitDumps>
export type DumpHalf = ReturnType<SplitDumps['stream']>

interface Meeting {
  readonly server: Deferred<PageServer>
  /** Pages are here, or none are taken. */
  closed: boolean
}

/**
 * How long one half is waited for. CRIU connects to the stream, then to the page server, and then opens an image: so
 * the other half comes soon, or never.
 */
const MEET_MS = 2000

/**
 * The criu that stream to one proxy, and those whose pages come to its port. `listens`: whether there is such a port.
 * Nothing is waited for once `signal` is aborted.
 */
export function openSplitDumps(listens: boolean, signal: AbortSignal) {
  const meetings = new Map<number, Meeting>()
  /** Connections for pages whose stream has not been seen yet. */
  const early = new Map<number, Deferred<void>>()

  async function streamOf(pid: number): Promise<void> {
    const seen = defer<void>()
    early.set(pid, seen)
    await Promise.race([seen.promise, setTimeout(MEET_MS, undefined, { ref: false, signal })]).catch(() => {})
    if (early.get(pid) === seen) early.delete(pid)
  }

  return {
    /** The criu of this number has connected to the stream. */
    stream(pid: number) {
      const meeting: Meeting = { server: defer(), closed: false }
      const { server } = meeting
      const refuse = (): void => {
        meeting.closed = true
        server.reject(splitDumpFault())
        server.promise.then((pages) => pages.destroy(splitDumpFault())).catch(() => {})
      }
      if (!listens) refuse()
      meetings.set(pid, meeting)
      early.get(pid)?.resolve()
      return {
        /** The dump with its pages. Its images throw `REFUSED` where the pages do not come to us. */
        join: (criu: IncomingDump): IncomingDump => ({
          ...criu,
          images: (steps) => joined(criu.images(steps), server.promise),
        }),
        /** The dump goes on without pages: those that come, or have come, are refused. */
        refuse,
        /** The dump is over. */
        end(): void {
          if (meetings.get(pid) === meeting) meetings.delete(pid)
          refuse()
        },
      }
    },
    /** Whether the criu of this number streams to us, and has not ended. */
    streams: (pid: number): boolean => meetings.has(pid),
    /**
     * The pages of this criu come over `socket`, which is closed in the end. Throws `REFUSED` where its stream does not
     * come to us, or goes on without pages.
     */
    async pages(pid: number, socket: Fd): Promise<void> {
      if (!meetings.has(pid)) await streamOf(pid)
      const meeting = meetings.get(pid)
      if (meeting === undefined || meeting.closed) {
        closeFd(socket)
        throw splitDumpFault()
      }
      meeting.closed = true
      meeting.server.resolve(new SocketPageServer(socket, () => false))
    },
  }
}

/** `REFUSED`: a dump goes to two places, and one of them is not here. */
function splitDumpFault(): Fault {
  return new Fault(
    'REFUSED',
    'criu sends images by --stream and pages by --page-server, and not all of them come here',
    {
      hint: 'both must come to the same proxy, and stand on the command line; or leave one of the two away',
    },
  )
}

function joined(stream: ImageSource, connecting: Promise<PageServer>): ImageSource {
  const stop = new AbortController()
  const stopped = rejectWhenAborted(stop.signal)
  stopped.catch(() => {})
  const came = defer<PageServer>()
  /** The pages are at an end. */
  const closed = defer<void>()
  let server: PageServer | undefined

  async function meet(): Promise<void> {
    const late = setTimeout(MEET_MS, undefined, { ref: false })
    server = await Promise.race([connecting, late, stopped])
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
    // The other images are in pipes by now. A criu with our script waits at post-dump; one without waits for nobody.
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
    // The consumer has stopped: images that are opened now are taken by nobody.
    for (const other of opening.values()) other.then(({ done, value }) => done || release(value)).catch(() => {})
    for (const source of sources) source.return(undefined).catch(() => {})
  }
}
