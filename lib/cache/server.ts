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
import { join } from 'node:path'
import type { Credentials } from '../credentials.ts'
import { writeScript } from '../criu/action-script.ts'
import { SERVE_SOCKET } from '../criu/serve.ts'
import { openWorkDir, type WorkDir } from '../criu/work-directory.ts'
import { openRemoteRestores } from '../criu-remote/restores.ts'
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import { giveBack } from '../kernel/mapped-memory.ts'
import { reapOrphans } from '../kernel/orphans.ts'
import { acceptUnix } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { openPeerMemory, type PeerMemory } from '../store/accounting.ts'
import { openPool } from '../store/pool.ts'
import { openShelf, type Shelf } from '../store/snapshots.ts'
import { type Groups, openGroups } from '../stream/connection-groups.ts'
import { openDoor, peerOf } from '../stream/endpoint.ts'
import { fdLink } from '../stream/fd-link.ts'
import type { Link } from '../stream/link.ts'
import { listen } from '../stream/listen.ts'
import { type Line, openLine } from '../stream/resuming-receiver.ts'
import { admissionOf, turnAway } from './admission.ts'
import { answer, type Manners } from './connection.ts'
import { type Connection, openConnections } from './connections.ts'
import { serveCriu } from './external-restore.ts'
import { type Failures, openFailures } from './failure-log.ts'
import { type Arrivals, openArrivals } from './handovers.ts'
import { openQuiet } from './idle.ts'

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
  /** Users of this host who may speak on the port where nothing has to be proved, beside root and our own; undefined for everybody. */
  allowUids: readonly number[] | undefined
  directory: string
  /** The snapshot that `criu restore` gets; the newest sealed one if undefined. */
  id: SnapshotId | undefined
  /** Most bytes of memory for images. */
  maxMemory: number
  /** Bytes of it that are ready for the next snapshot. */
  reserve: number
  /**
   * How long a restore may wait for its snapshot, an unfinished chain is safe when memory runs out, and nothing may move of a snapshot
   * that comes or goes.
   */
  timeoutMs: number
  /** Restore every snapshot that comes with a hand-over as soon as it is here. */
  restore: { criu: string; options: readonly string[] } | undefined
  /** Give the memory of a snapshot back while a restore that can be held takes it: for one try. */
  releaseEarly: boolean
  /** A snapshot whose process runs stays, for more restores. */
  keep: boolean
  /** How to talk with proxies and clients that come over the port: our wire if undefined. Tells what fails, and closes the link. */
  hear?: ((line: Line, house: House, manners: Manners) => Promise<void>) | undefined
  /** Offer the pages that are here to senders, and share them. */
  dedup: boolean
  report: Report
  signal: AbortSignal
  onStatus?: (listener: () => void) => void
}

/** A UNIX socket that speaks the wire, in the work directory: for this host's root, and for verdicts by hand. */
export const CACHE_SOCKET = 'cache.sock'

/** For criu --action-script. */
const SCRIPT = 'post-restore'

/** What every conversation needs. */
export interface House {
  shelf: Shelf
  arrivals: Arrivals
  options: CacheOptions
  /** Snapshots on their way whose sender may come back over another link. */
  lines: Map<SnapshotId, Line>
  /** Rounds on their way: their tasks run, and who sends them may have fallen silent. */
  rounds: Map<SnapshotId, { link: Link; over: Promise<void> }>
  /** Connections that wait for those that they belong to. */
  groups: Groups
  /** What is held for peers beside images. */
  peers: PeerMemory
  /** Tells what peers make fail, and, more briefly, what those do who have not spoken. */
  failures: Failures
  strangers: Failures
}

/** Runs until the signal comes; throws its reason. Throws `EXISTS`, `IO` or `LINK` if it cannot listen. */
export async function cache(options: CacheOptions): Promise<never> {
  const work = openWorkDir(options.directory, SERVE_SOCKET, (directory) => void writeScript(directory, SCRIPT))
  try {
    return await keepHouse(work, options)
  } finally {
    work.remove()
    rmSync(join(work.path, SCRIPT), { force: true })
  }
}

async function keepHouse(work: WorkDir, options: CacheOptions): Promise<never> {
  const { report, signal } = options
  reapOrphans()
  const pool = openPool(options.maxMemory, options.reserve)
  const connections = openConnections({ most: MOST_LINKS, silentMs: FIRST_FRAME_MS, quiet: openQuiet(giveBack) })
  const peers = openPeerMemory(pool)
  peers.relief = () => connections.relieve(true)
  const failures = openFailures(report, MOST_FAILURES)
  const strangers = openFailures(report)
  const shelf = openShelf(pool, {
    relieve: () => connections.relieve(false),
    idleMs: options.timeoutMs,
    dedup: options.dedup,
    onDropped(id, idleMs) {
      const fault = new Fault('MEMORY', `no round came for ${(idleMs / 1000).toFixed(1)} s, and memory was needed`)
      report({ event: 'failed', what: `the unfinished chain ${id}`, fault })
    },
  })
  const arrivals = openArrivals(shelf, { ...options, directory: work.path })
  const groups = openGroups(FIRST_FRAME_MS, (link, count, source) => admit(link, source, hear, { joined: true }, count))
  const house: House = {
    shelf,
    arrivals,
    options: { ...options, directory: work.path },
    lines: new Map(),
    rounds: new Map(),
    groups,
    peers,
    failures,
    strangers,
  }
  const server = net.createServer({
    pauseOnConnect: true,
    allowHalfOpen: true,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: 10_000,
  })
  const door = openDoor(options.credentials)
  const { hear = answer } = options
  const connected = async (socket: net.Socket): Promise<void> => {
    const what = peerOf(socket)
    const { source, refusal } = admissionOf(socket, options.credentials === undefined ? options.allowUids : undefined)
    const lobby = connections.add(source, () => socket.destroy())
    try {
      if (refusal !== undefined) {
        strangers.tell(source, what, refusal)
        // A client of another wire would not understand.
        return hear === answer ? await turnAway(socket, refusal) : void socket.destroy()
      }
      const link = await door(socket, what, source)
      lobby.leave()
      admit(link, source)
    } catch (fault) {
      strangers.tell(source, what, fault as Error)
    } finally {
      lobby.leave()
    }
  }
  server.on('connection', (socket) => void connected(socket))
  const admit = (fresh: Link, source: string, talk = hear, more: Partial<Manners> = {}, count = 1): Connection => {
    const line = openLine(fresh)
    const connection = connections.add(source, (reason) => line.link.destroy(reason), count)
    void talk(line, house, { connection, source, ...more }).finally(connection.leave)
    return connection
  }
  const control = openWorkDir(work.path, CACHE_SOCKET)
  const script = join(work.path, SCRIPT)
  arrivals.adopt()
  const remote = openRemoteRestores(script, house)
  try {
    if (options.port !== undefined) {
      const port = await listen(server, { ...options, port: options.port })
      report({ event: 'listening', at: `${options.host}:${port}` })
    }
    report({ event: 'listening', at: join(work.path, SERVE_SOCKET) })
    signal.addEventListener('abort', () => {
      work.remove(signal.reason as Error)
      control.remove(signal.reason as Error)
      remote.close()
    })
    options.onStatus?.(() => {
      const { used, limit } = pool
      const { silent, answered: links } = connections.counts
      report({ event: 'status', of: 'cache', ...shelf.counts, used, limit, links, silent, peers: peers.used })
    })
    if (options.first !== undefined) admit(options.first, 'whoever started us').enter('holding')
    report({ event: 'ready' })
    await Promise.all([
      acceptAll(work.listener, (socket) => void serveCriu(socket, script, house)),
      acceptAll(
        control.listener,
        (socket) => void admit(fdLink(socket, LOCAL, 'socket'), LOCAL, answer, { trusted: true }),
      ),
    ])
    throw signal.reason
  } finally {
    server.close()
    control.remove()
    remote.close()
    connections.close(signal.reason as Fault)
    failures.close()
    strangers.close()
  }
}

async function acceptAll(listener: Fd, take: (socket: Fd) => void): Promise<never> {
  for (;;) take(await acceptUnix(listener))
}

/** Connections at a time that have spoken, and as many that have not yet. */
const MOST_LINKS = 256
/** Lines a second that one peer can have written: more than honest dumps that fail together. */
const MOST_FAILURES = 8
const LOCAL = 'a local client'
/** A client that has connected has something to say. */
const FIRST_FRAME_MS = 30_000
