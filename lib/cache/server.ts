/**
 * The image-cache: a daemon on the target host. It takes snapshots from proxies, keeps them in memory, and gives them
 * to `criu restore --stream -D DIR` and to restore-from-socket, to every client that asks and as often as it asks.
 *
 * The cache sends the first frame (`hello`), so that a client can tell it from a plain stream; then the client sends a
 * snapshot or asks for one (`get`). A snapshot can be had only when it is sealed: complete, and every digest verified.
 * A client that asks earlier waits. A snapshot stays until the cache ends: a restore that fails can be tried again.
 *
 * Refused: serving an image while it is still received. CRIU's order of restoring is nearly the reverse of its order of
 * dumping, so there is little to gain, and a process could run from a dump that then fails.
 */
import { rmSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { writeScript } from '../criu/action-script.ts'
import { SERVE_SOCKET } from '../criu/serve.ts'
import { openWorkDir, type WorkDir } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import { reapOrphans } from '../kernel/child-reaper.ts'
import type { Fd } from '../kernel/fd.ts'
import { giveBack } from '../kernel/mapped-memory.ts'
import { acceptUnix } from '../kernel/unix.ts'
import { PeerMemory } from '../store/accounting.ts'
import { Pool } from '../store/pool.ts'
import { Snapshots } from '../store/snapshots.ts'
import { ConnectionGroups } from '../stream/connection-groups.ts'
import { linkMaker, peerOf } from '../stream/endpoint.ts'
import { fdLink } from '../stream/fd-link.ts'
import type { Link } from '../stream/link.ts'
import { listen } from '../stream/listen.ts'
import { TargetLink } from '../stream/resuming-receiver.ts'
import { admissionOf } from './admission.ts'
import { type Connection, Connections } from './connection-limit.ts'
import { CACHE_SOCKET, type CacheContext, type CacheOptions, type ConnectionPolicy } from './context.ts'
import { serveExternalRestore } from './external-restore.ts'
import { openFailureLog } from './failure-log.ts'
import { refuseSocket } from './graceful-close.ts'
import { handleConnection } from './handle-connection.ts'
import { Handovers } from './handovers.ts'
import { openIdleTimer } from './idle.ts'

/** The action script for criu, in the work directory. */
const SCRIPT = 'post-restore'
/** Most connections that have sent a frame, and most of those that have sent none. */
const MOST_LINKS = 256
/** Lines a second in the log for one peer: more than honest dumps that fail together cause. */
const MOST_FAILURES = 8
/** How long a client may take for its first frame, ms. */
const FIRST_FRAME_MS = 30_000
/** The origin and the name of clients at the cache's own socket. */
const LOCAL = 'a local client'

/** Runs until the signal comes; throws its reason. Throws `EXISTS`, `IO` or `LINK` if it cannot listen. */
export async function runCache(options: CacheOptions): Promise<never> {
  const work = openWorkDir(options.directory, SERVE_SOCKET, (directory) => void writeScript(directory, SCRIPT))
  try {
    return await new CacheServer(work, { ...options, directory: work.path }).run()
  } finally {
    work.remove()
    rmSync(join(work.path, SCRIPT), { force: true })
  }
}

class CacheServer {
  readonly #work: WorkDir
  readonly #connections = new Connections({
    most: MOST_LINKS,
    silentMs: FIRST_FRAME_MS,
    quiet: openIdleTimer(giveBack),
  })
  readonly #pool: Pool
  readonly #context: CacheContext

  constructor(work: WorkDir, options: CacheOptions) {
    reapOrphans()
    this.#work = work
    const { report, timeoutMs, dedup } = options
    this.#pool = new Pool(options.maxMemory, options.reserve)
    const peerMemory = new PeerMemory(this.#pool)
    peerMemory.relief = () => this.#connections.relieve(true)
    const snapshots = new Snapshots(this.#pool, {
      relieve: () => this.#connections.relieve(false),
      idleMs: timeoutMs,
      dedup,
      onDropped(id, idleMs) {
        const fault = new Fault('MEMORY', `no round came for ${(idleMs / 1000).toFixed(1)} s, and memory was needed`)
        report({ event: 'failed', what: `the unfinished chain ${id}`, fault })
      },
    })
    this.#context = {
      snapshots,
      handovers: new Handovers(snapshots, options),
      options,
      resumable: new Map(),
      incomingRounds: new Map(),
      groups: new ConnectionGroups(FIRST_FRAME_MS, (link, count, origin) =>
        this.#serve(link, origin, { joined: true }, count),
      ),
      peerMemory,
      failures: openFailureLog(report, MOST_FAILURES),
      earlyFailures: openFailureLog(report),
    }
  }

  async run(): Promise<never> {
    const { options } = this.#context
    const { report, signal, openRestores, first, port } = options
    const server = this.#createServer()
    const own = openWorkDir(this.#work.path, CACHE_SOCKET)
    const script = join(this.#work.path, SCRIPT)
    this.#context.handovers.recover()
    const otherRestores = openRestores?.(script, this.#context)
    try {
      if (port !== undefined) {
        const number = await listen(server, { ...options, port })
        report({ event: 'listening', at: `${options.host}:${number}` })
      }
      report({ event: 'listening', at: join(this.#work.path, SERVE_SOCKET) })
      signal.addEventListener('abort', () => {
        this.#work.remove(signal.reason as Error)
        own.remove(signal.reason as Error)
        otherRestores?.close()
      })
      options.onStatus?.(() => this.#reportStatus())
      if (first !== undefined) this.#serve(first, 'whoever started us').enter('holding')
      report({ event: 'ready' })
      await Promise.all([
        acceptAll(this.#work.listener, (socket) => void serveExternalRestore(socket, script, this.#context)),
        acceptAll(
          own.listener,
          (socket) => void this.#serve(fdLink(socket, LOCAL, 'socket'), LOCAL, { trusted: true }),
        ),
      ])
      throw signal.reason
    } finally {
      server.close()
      own.remove()
      otherRestores?.close()
      this.#connections.close(signal.reason as Fault)
      this.#context.failures.close()
      this.#context.earlyFailures.close()
    }
  }

  #createServer(): net.Server {
    const { credentials } = this.#context.options
    const makeLink = linkMaker(credentials)
    const keepAlive = { keepAlive: true, keepAliveInitialDelay: 10_000 }
    const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true, noDelay: true, ...keepAlive })
    return server.on('connection', (socket) => void this.#connected(socket, makeLink))
  }

  /** Serves a TCP connection, if its client is admitted and proves its credentials. */
  async #connected(socket: net.Socket, makeLink: ReturnType<typeof linkMaker>): Promise<void> {
    const { credentials, allowUids, handler } = this.#context.options
    const { earlyFailures } = this.#context
    const what = peerOf(socket)
    const { origin, refusal } = admissionOf(socket, credentials === undefined ? allowUids : undefined)
    const handshake = this.#connections.add(origin, () => socket.destroy())
    try {
      if (refusal !== undefined) {
        earlyFailures.tell(origin, what, refusal)
        // A client of another wire would not understand our frames.
        return handler === undefined ? await refuseSocket(socket, refusal) : void socket.destroy()
      }
      const link = await makeLink(socket, what, origin)
      handshake.leave()
      this.#serve(link, origin)
    } catch (fault) {
      earlyFailures.tell(origin, what, fault as Error)
    } finally {
      handshake.leave()
    }
  }

  /** Adds a link to the table of connections and serves it. `count`: the sockets that carry it. */
  #serve(link: Link, origin: string, more: Partial<ConnectionPolicy> = {}, count = 1): Connection {
    // The cache's own socket speaks our wire in any case.
    const handle = more.trusted ? handleConnection : (this.#context.options.handler ?? handleConnection)
    const targetLink = new TargetLink(link, (bytes) => connection.moved(bytes))
    const connection = this.#connections.add(origin, (reason) => targetLink.link.destroy(reason), count)
    void handle(targetLink, this.#context, { connection, origin, ...more }).finally(() => connection.leave())
    return connection
  }

  #reportStatus(): void {
    const { used, limit } = this.#pool
    const { silent, answered: links } = this.#connections.counts
    const { snapshots, peerMemory, options } = this.#context
    const peers = peerMemory.used
    options.report({ event: 'status', of: 'cache', ...snapshots.counts, used, limit, links, silent, peers })
  }
}

async function acceptAll(listener: Fd, take: (socket: Fd) => void): Promise<never> {
  for (;;) take(await acceptUnix(listener))
}
