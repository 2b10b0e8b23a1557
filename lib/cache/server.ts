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
import { writeScript } from '../criu/action-script.ts'
import { SERVE_SOCKET } from '../criu/serve.ts'
import { openWorkDir, type WorkDir } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { Fd } from '../kernel/fd.ts'
import { giveBack } from '../kernel/mapped-memory.ts'
import { reapOrphans } from '../kernel/orphans.ts'
import { acceptUnix } from '../kernel/unix.ts'
import { openPeerMemory } from '../store/accounting.ts'
import { Pool } from '../store/pool.ts'
import { Snapshots } from '../store/snapshots.ts'
import { openConnectionGroups } from '../stream/connection-groups.ts'
import { linkMaker, peerOf } from '../stream/endpoint.ts'
import { fdLink } from '../stream/fd-link.ts'
import type { Link } from '../stream/link.ts'
import { listen } from '../stream/listen.ts'
import { openTargetLink } from '../stream/resuming-receiver.ts'
import { admissionOf, turnAway } from './admission.ts'
import { handleConnection } from './connection.ts'
import { type Connection, openConnections } from './connections.ts'
import type { CacheContext, CacheOptions, ConnectionPolicy } from './context.ts'
import { CACHE_SOCKET } from './context.ts'
import { serveExternalRestore } from './external-restore.ts'
import { openFailureLog } from './failure-log.ts'
import { openHandovers } from './handovers.ts'
import { openIdleTimer } from './idle.ts'

/** For criu --action-script. */
const SCRIPT = 'post-restore'

/** Runs until the signal comes; throws its reason. Throws `EXISTS`, `IO` or `LINK` if it cannot listen. */
export async function runCache(options: CacheOptions): Promise<never> {
  const work = openWorkDir(options.directory, SERVE_SOCKET, (directory) => void writeScript(directory, SCRIPT))
  try {
    return await serveAll(work, options)
  } finally {
    work.remove()
    rmSync(join(work.path, SCRIPT), { force: true })
  }
}

async function serveAll(work: WorkDir, options: CacheOptions): Promise<never> {
  const { report, signal } = options
  reapOrphans()
  const pool = new Pool(options.maxMemory, options.reserve)
  const connections = openConnections({ most: MOST_LINKS, silentMs: FIRST_FRAME_MS, quiet: openIdleTimer(giveBack) })
  const peers = openPeerMemory(pool)
  peers.relief = () => connections.relieve(true)
  const failures = openFailureLog(report, MOST_FAILURES)
  const silentFailures = openFailureLog(report)
  const snapshots = new Snapshots(pool, {
    relieve: () => connections.relieve(false),
    idleMs: options.timeoutMs,
    dedup: options.dedup,
    onDropped(id, idleMs) {
      const fault = new Fault('MEMORY', `no round came for ${(idleMs / 1000).toFixed(1)} s, and memory was needed`)
      report({ event: 'failed', what: `the unfinished chain ${id}`, fault })
    },
  })
  const handovers = openHandovers(snapshots, { ...options, directory: work.path })
  const groups = openConnectionGroups(FIRST_FRAME_MS, (link, count, source) =>
    admit(link, source, hear, { joined: true }, count),
  )
  const context: CacheContext = {
    snapshots,
    handovers,
    options: { ...options, directory: work.path },
    incoming: new Map(),
    rounds: new Map(),
    groups,
    peers,
    failures,
    silentFailures,
  }
  const server = net.createServer({
    pauseOnConnect: true,
    allowHalfOpen: true,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: 10_000,
  })
  const door = linkMaker(options.credentials)
  const { hear = handleConnection } = options
  const connected = async (socket: net.Socket): Promise<void> => {
    const what = peerOf(socket)
    const { source, refusal } = admissionOf(socket, options.credentials === undefined ? options.allowUids : undefined)
    const lobby = connections.add(source, () => socket.destroy())
    try {
      if (refusal !== undefined) {
        silentFailures.tell(source, what, refusal)
        // A client of another wire would not understand.
        return hear === handleConnection ? await turnAway(socket, refusal) : void socket.destroy()
      }
      const link = await door(socket, what, source)
      lobby.leave()
      admit(link, source)
    } catch (fault) {
      silentFailures.tell(source, what, fault as Error)
    } finally {
      lobby.leave()
    }
  }
  server.on('connection', (socket) => void connected(socket))
  const admit = (
    fresh: Link,
    source: string,
    talk = hear,
    more: Partial<ConnectionPolicy> = {},
    count = 1,
  ): Connection => {
    const line = openTargetLink(fresh)
    const connection = connections.add(source, (reason) => line.link.destroy(reason), count)
    void talk(line, context, { connection, source, ...more }).finally(connection.leave)
    return connection
  }
  const control = openWorkDir(work.path, CACHE_SOCKET)
  const script = join(work.path, SCRIPT)
  handovers.recover()
  const others = options.openRestores?.(script, context)
  try {
    if (options.port !== undefined) {
      const port = await listen(server, { ...options, port: options.port })
      report({ event: 'listening', at: `${options.host}:${port}` })
    }
    report({ event: 'listening', at: join(work.path, SERVE_SOCKET) })
    signal.addEventListener('abort', () => {
      work.remove(signal.reason as Error)
      control.remove(signal.reason as Error)
      others?.close()
    })
    options.onStatus?.(() => {
      const { used, limit } = pool
      const { silent, answered: links } = connections.counts
      report({ event: 'status', of: 'cache', ...snapshots.counts, used, limit, links, silent, peers: peers.used })
    })
    if (options.first !== undefined) admit(options.first, 'whoever started us').enter('holding')
    report({ event: 'ready' })
    await Promise.all([
      acceptAll(work.listener, (socket) => void serveExternalRestore(socket, script, context)),
      acceptAll(
        control.listener,
        (socket) => void admit(fdLink(socket, LOCAL, 'socket'), LOCAL, handleConnection, { trusted: true }),
      ),
    ])
    throw signal.reason
  } finally {
    server.close()
    control.remove()
    others?.close()
    connections.close(signal.reason as Fault)
    failures.close()
    silentFailures.close()
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
