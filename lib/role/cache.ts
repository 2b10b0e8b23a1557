/**
 * The image-cache: a daemon on the target host. It takes snapshots from proxies, keeps them in memory, and hands them
 * to `criu restore --stream -D DIR` and to restore-from-socket, whichever asks and as often as it asks.
 *
 * It speaks first (`hello`), so that a client knows a cache from a plain stream; then the client either sends a
 * snapshot or asks for one (`get`). A snapshot can be had only when it is sealed: complete, and every digest seen to hold. Who
 * asks earlier waits. A snapshot stays until the cache ends: a restore that fails can be tried again.
 *
 * Refused: serving an image while it still arrives. CRIU's order of restoring is nearly the reverse of its order of dumping, so
 * there is little to gain, and a process could run from a dump that then fails.
 */
import { rmSync } from 'node:fs'
import net from 'node:net'
import { join, resolve } from 'node:path'
import type { Credentials } from '../credentials.ts'
import { Fault } from '../fault.ts'
import { hex64 } from '../format/digest.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import type { Frame, Until } from '../format/wire.ts'
import type { Fd } from '../kernel/fd.ts'
import { commandLine, openProcess } from '../kernel/process.ts'
import { acceptUnix, peerPid } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import type { StoredImage } from '../store/memory.ts'
import { openPool } from '../store/pool.ts'
import { openShelf, type Sealed, type Shelf } from '../store/shelf.ts'
import { openDoor, peerOf } from '../stream/endpoint.ts'
import { fdLink } from '../stream/fd-link.ts'
import { type FrameReader, type FrameWriter, frameReader, frameWriter } from '../stream/frames.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { receiveSnapshot, unexpected } from '../stream/receive.ts'
import { type Line, openLine, unknown } from '../stream/resuming-receiver.ts'
import { sendSnapshot } from '../stream/send.ts'
import { type Arrivals, byHand, type Lead, openArrivals } from './arrivals.ts'
import { closedGate, writeScript } from './gate.ts'
import type { TargetState } from './handover.ts'
import { refusalOf } from './refusal.ts'
import { SERVE_SOCKET, serve } from './serve.ts'
import { openWorkDir } from './workdir.ts'

export interface CacheOptions {
  host: string
  /** 0: the kernel chooses; reported. Undefined: no port, only `first`. */
  port: number | undefined
  /** A listening socket that we were given; `host` and `port` are its address. */
  listener?: Fd | undefined
  /** A connection that we were given: it may be silent as long as it likes. */
  first?: Link | undefined
  /** What a client must prove; plain TCP if undefined. */
  credentials: Credentials | undefined
  directory: string
  /** The snapshot that `criu restore` gets; the newest sealed one if undefined. */
  id: SnapshotId | undefined
  /** Most bytes of memory for images. */
  maxMemory: number
  /** How long a restore may wait for its snapshot. */
  timeoutMs: number
  /** Restore every snapshot that comes with a hand-over as soon as it is here. */
  restore: { criu: string; options: readonly string[] } | undefined
  /** Give the memory of a snapshot back while a restore that can be held takes it: for one try. */
  releaseEarly: boolean
  report: Report
  signal: AbortSignal
  onStatus?: (listener: () => void) => void
}

/** A UNIX socket that speaks the wire, in the work directory: for this host's root, and for verdicts by hand. */
export const CACHE_SOCKET = 'cache.sock'

/** What every conversation needs. */
interface House {
  shelf: Shelf
  arrivals: Arrivals
  options: CacheOptions
  /** Snapshots on their way whose sender may come back over another link. */
  lines: Map<SnapshotId, Line>
}

/** One conversation on the wire. */
interface Talk {
  line: Line
  link: Link
  reader: FrameReader
  writer: FrameWriter
}

/** Runs until the signal comes; throws its reason. Throws `EXISTS`, `IO` or `LINK` if it cannot listen. */
export async function cache(options: CacheOptions): Promise<never> {
  const { report, signal } = options
  const pool = openPool(options.maxMemory)
  const shelf = openShelf(pool)
  const work = openWorkDir(options.directory, SERVE_SOCKET)
  const arrivals = openArrivals(shelf, { ...options, directory: work.path })
  const house: House = { shelf, arrivals, options: { ...options, directory: work.path }, lines: new Map() }
  const links = new Set<Link>()
  const server = net.createServer({
    pauseOnConnect: true,
    allowHalfOpen: true,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: 10_000,
  })
  server.maxConnections = MOST_LINKS
  const door = openDoor(options.credentials)
  server.on('connection', (socket) => {
    const what = peerOf(socket)
    if (links.size >= MOST_LINKS) return void socket.destroy()
    const refused = (fault: Fault): void => report({ event: 'failed', what, fault })
    door(socket, what).then((link) => admit(link, FIRST_FRAME_MS), refused)
  })
  const admit = (fresh: Link, patienceMs?: number): void => {
    const line = openLine(fresh)
    links.add(line.link)
    void answer(line, house, patienceMs).finally(() => links.delete(line.link))
  }
  const control = openWorkDir(work.path, CACHE_SOCKET)
  const script = writeScript(work.path, 'post-restore')
  arrivals.adopt()
  try {
    if (options.port !== undefined) {
      const port = await listen(server, options)
      report({ event: 'listening', at: `${options.host}:${port}` })
    }
    report({ event: 'listening', at: join(work.path, SERVE_SOCKET) })
    signal.addEventListener('abort', () => {
      work.remove(signal.reason as Error)
      control.remove(signal.reason as Error)
    })
    options.onStatus?.(() => {
      const { used, limit } = pool
      report({ event: 'status', of: 'cache', ...shelf.counts, used, limit, links: links.size })
    })
    if (options.first !== undefined) admit(options.first)
    report({ event: 'ready' })
    await Promise.all([
      acceptAll(work.listener, (socket) => void serveCriu(socket, script, house)),
      acceptAll(control.listener, (socket) => admit(fdLink(socket, 'a local client', 'socket'), FIRST_FRAME_MS)),
    ])
    throw signal.reason
  } finally {
    server.close()
    control.remove()
    work.remove()
    rmSync(script, { force: true })
    for (const link of links) link.destroy(signal.reason as Error)
  }
}

async function acceptAll(listener: Fd, take: (socket: Fd) => void): Promise<never> {
  for (;;) take(await acceptUnix(listener))
}

function listen(server: net.Server, { host, port, listener }: CacheOptions): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const hint = cause.code === 'EADDRINUSE' ? 'another program listens there: choose another --port' : undefined
      reject(new Fault('LINK', `cannot listen on ${host}:${port} (${cause.code})`, { cause, ...(hint && { hint }) }))
    })
    server.listen(listener === undefined ? { host, port } : { fd: listener }, () =>
      resolve((server.address() as net.AddressInfo).port),
    )
  })
}

/** Links at a time; more are closed at once. */
const MOST_LINKS = 256
/** Bytes of payload in the first frame: a name. */
const LONGEST_FIRST = 1024
/** A client that has connected has something to say. */
const FIRST_FRAME_MS = 30_000

async function answer(line: Line, house: House, patienceMs?: number): Promise<void> {
  const { link } = line
  const writer = frameWriter(link.outlet)
  const reader = frameReader(link.inlet, { onGot: line.onGot })
  const talk = { line, link, reader, writer }
  let what = link.peer
  try {
    await writer.send({ type: 'hello' })
    const hangUp = (): void => link.destroy(new Fault('TIMEOUT', 'the client said nothing'))
    const silent = patienceMs === undefined ? undefined : setTimeout(hangUp, patienceMs)
    const frame = await reader.next(LONGEST_FIRST).finally(() => clearTimeout(silent))
    if (frame === undefined) return
    if (frame.type === 'snapshot') {
      what = `snapshot ${frame.id}`
      await take({ id: frame.id, ...talk }, house)
    } else if (frame.type === 'get') await give(frame, { ...talk, holds: false }, house)
    else if (frame.type === 'handOver') {
      const get = await reader.expect()
      if (get.type !== 'get') throw unexpected(get)
      await give(get, { ...talk, holds: true }, house)
    } else if (frame.type === 'verdict') await obey(frame, writer, house.arrivals)
    else if (frame.type === 'resume') {
      what = `snapshot ${frame.id}`
      const broken = house.lines.get(frame.id)
      if (broken === undefined) throw unknown()
      broken.resume(frame, line)
    } else throw unexpected(frame)
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    house.options.report({ event: 'failed', what, fault: error })
    await refuse(link, writer, error).catch(() => {})
  } finally {
    link.destroy()
    for (const [id, taking] of house.lines) if (taking === line) house.lines.delete(id)
  }
}

const LINGER_MS = 5000

/**
 * Tells the peer why, and takes what it has already sent: closing over unread bytes makes TCP reset the link, and the
 * peer would learn of the reset before it reads the reason.
 */
async function refuse(link: Link, writer: FrameWriter, fault: Fault): Promise<void> {
  await linger(link, () => writer.send({ type: 'refused', code: refusalOf(fault), reason: fault.message }))
}

/** Says its last word, and takes what still comes. */
async function linger(link: Link, say = async (): Promise<void> => {}): Promise<void> {
  const timer = setTimeout(() => link.destroy(), LINGER_MS)
  try {
    await say()
    await link.outlet.finish()
    const scratch = Buffer.allocUnsafe(64 * 2 ** 10)
    while (await link.inlet.fill(scratch));
  } catch {
  } finally {
    clearTimeout(timer)
  }
}

async function take(
  { id, reader, writer, line, link }: Talk & { id: SnapshotId },
  { shelf, arrivals, options, lines }: House,
): Promise<void> {
  const { report } = options
  const begun = performance.now()
  const arriving = shelf.receive(id)
  let until: Until | undefined
  let digest: bigint
  try {
    const ack = (channel: number, offset: number): Promise<void> => writer.send({ type: 'ack', channel, offset })
    const snapshot = await receiveSnapshot(reader, arriving.sink, ack, (far, token) => {
      until = far
      if (token === undefined) return
      line.outlive(token, options.timeoutMs)
      lines.set(id, line)
    })
    digest = snapshot.digest
    if (until !== undefined) arrivals.add(id)
    arriving.seal(until !== undefined)
    const ms = performance.now() - begun
    report({ event: 'sealed', id, images: snapshot.images.length, bytes: snapshot.bytes, ms, digest: hex64(digest) })
  } finally {
    arriving.drop()
  }
  const arrival = arrivals.get(id)
  if (arrival === undefined || until === undefined) return writer.send({ type: 'sealed', digest })
  const watcher = {
    ready: () => void writer.send({ type: 'ready' }).catch(() => {}),
    refused: (fault: Fault) =>
      void writer.send({ type: 'refused', code: refusalOf(fault), reason: fault.message }).catch(() => {}),
    // Its own answer goes out first.
    settled: () => void setTimeout(() => link.destroy(), SETTLED_MS).unref(),
  }
  arrival.watcher = watcher
  try {
    await writer.send({ type: 'sealed', digest })
    arrivals.restore(id)
    const last = await reader.next().catch((reason: unknown) => {
      // Its verdict may have come over a link of its own.
      if (!settled.includes(arrival.state)) throw reason
      return undefined
    })
    await obey(last, writer, arrivals)
    if (last !== undefined) await linger(link)
  } finally {
    arrival.watcher = undefined
    if (!settled.includes(arrival.state)) report({ event: 'undecided', id, how: byHand(options.directory, id) })
  }
}

/** How long a link stays after its verdict. */
const SETTLED_MS = 1000

/** States in which nothing depends on a verdict any more. */
const settled: readonly TargetState[] = ['owning', 'reviving', 'running', 'dropped']

/** The verdict is the last word of a source; it may come on a link of its own. Without it the copy is held. */
async function obey(frame: Frame | undefined, writer: FrameWriter, arrivals: Arrivals): Promise<void> {
  if (frame === undefined) return
  if (frame.type === 'failed') throw new Fault(frame.code, `the source gave up: ${frame.reason}`)
  if (frame.type !== 'verdict') throw unexpected(frame)
  await writer.send({ type: 'fate', fate: await arrivals.decide(frame.id, frame.verdict) })
}

async function give(
  { id, timeoutMs }: { id: SnapshotId | undefined; timeoutMs: number },
  { reader, writer, holds }: Talk & { holds: boolean },
  { shelf, arrivals, options: { report, signal } }: House,
): Promise<void> {
  arrivals.refuseIfRunning(id)
  const first = reader.next()
  first.catch(() => {})
  const left = new AbortController()
  const leave = (): void => left.abort(new Fault('LINK', 'the client left before its snapshot was here'))
  first.then(leave, leave)
  const snapshot = await shelf.find(id, timeoutMs, left.signal, holds)
  const remote = holds ? arrivals.remote(snapshot.id, writer) : undefined
  try {
    const begun = performance.now()
    const until = remote === undefined ? undefined : 'running'
    const sent = await sendSnapshot(writer, snapshot.id, storedSource(snapshot.images), { signal, until })
    const reply = await first
    if (reply?.type !== 'sealed' || reply.digest !== sent.digest) {
      throw new Fault('LINK', 'the client did not confirm the snapshot')
    }
    const ms = performance.now() - begun
    report({ event: 'served', id: snapshot.id, images: sent.images.length, bytes: sent.bytes, ms })
    await remote?.follow(reader)
  } catch (error) {
    remote?.lost(error as Fault)
    throw error
  }
}

/** A criu restore that somebody else started. One that has our action script can be held, and so may come before the verdict. */
async function serveCriu(socket: Fd, script: string, { shelf, arrivals, options }: House): Promise<void> {
  const { id, timeoutMs, report, directory } = options
  const pid = peerPid(socket)
  const gate = commandLine(pid).some((word) => resolve(word) === script)
    ? closedGate(directory, pid, 'post-restore')
    : undefined
  const criu = openProcess(pid)
  let found: Sealed | undefined
  let lead: Lead | undefined
  let begun = performance.now()
  try {
    const served = await serve(
      socket,
      async () => {
        if (found !== undefined) return found.images
        arrivals.refuseIfRunning(id)
        if (!shelf.has(id)) report({ event: 'waiting', what: id ?? 'the newest snapshot' })
        const next = await shelf.find(id, timeoutMs, undefined, gate !== undefined)
        lead = arrivals.lead(next.id, gate, criu)
        found = next
        begun = performance.now()
        return found.images
      },
      {
        onTaken: (piece) => {
          if (options.releaseEarly && gate !== undefined && arrivals.get(found?.id as SnapshotId) !== undefined)
            found?.release(piece)
        },
      },
    )
    const ms = performance.now() - begun
    if (found !== undefined) {
      report({ event: 'served', id: found.id, images: served.images.length, bytes: served.bytes, ms })
    }
    await lead?.finish()
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    report({ event: 'failed', what: found === undefined ? 'a restore' : `the restore of ${found.id}`, fault: error })
  } finally {
    gate?.remove()
    criu?.close()
  }
}

/** Stored images as a source, so that a snapshot can be sent on. */
function storedSource(images: ReadonlyMap<ImageName, StoredImage>): ImageSource {
  return {
    images: (async function* (): AsyncGenerator<OpenImage> {
      for (const { name, pieces } of images.values()) {
        yield { name, body: { kind: 'pieces', pieces: pieces.map((piece) => piece.window) } }
      }
    })(),
    destroy() {},
  }
}
