/**
 * The image-proxy: a daemon on the source host that forwards each `criu dump --stream -D DIR` to the cache.
 *
 * Every CRIU that connects gets its own connection to the cache, so that dumps do not mix and a failed one harms no
 * other. CRIU is never answered, only read from: it waits where its pipes are full, and at post-dump where it has our
 * action script. A CRIU without that script waits for nobody once its last image is written: then the process is gone,
 * whatever the cache says.
 */
import { rmSync } from 'node:fs'
import { setPriority } from 'node:os'
import { join } from 'node:path'
import { type FailureLog, openFailureLog } from '../cache/failure-log.ts'
import { openIdleTimer } from '../cache/idle.ts'
import { clearGates, writeScript } from '../criu/action-script.ts'
import { CAPTURE_SOCKET } from '../criu/capture.ts'
import { type CriuCommand, incrementalFault, readCriuCommand } from '../criu/command-line.ts'
import { acceptDump, type IncomingDump } from '../criu/incoming-dump.ts'
import { type PageServer, SocketPageServer } from '../criu/page-server.ts'
import { openPagePort, type PagePort } from '../criu/page-server-port.ts'
import { type DumpHalf, openSplitDumps, type SplitDumps } from '../criu/split-dump.ts'
import { openWorkDir, type WorkDir } from '../criu/work-directory.ts'
import { RemoteDumps } from '../criu-remote/dumps.ts'
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import type { Fd } from '../kernel/fd.ts'
import { giveBack } from '../kernel/mapped-memory.ts'
import { openProcess } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { acceptUnix, peerPid } from '../kernel/unix.ts'
import { ProxyChains, type TakenChain } from '../precopy/chains.ts'
import type { Delivery, DeliveryContext, RoundRequest } from '../precopy/delivery.ts'
import { lastLayer, nextLayer, type PreCopyChain } from '../precopy/send-round.ts'
import type { Report } from '../progress.ts'
import { freshId } from '../store/fresh-id.ts'
import { giveReplayMemory, takeReplayMemory } from '../stream/replay-buffer.ts'

interface ProxyOptions {
  delivery: Delivery
  directory: string
  /** The id of every snapshot that passes; a fresh one each if undefined. */
  id: SnapshotId | undefined
  /** The port for criu --page-server; 0: the kernel chooses; none if undefined. */
  pagePort: number | undefined
  report: Report
  signal: AbortSignal
  onStatus: (listener: () => void) => void
}

export class ImageProxy {
  readonly #options: ProxyOptions
  readonly #work: WorkDir
  readonly #context: DeliveryContext
  readonly #chains: ProxyChains
  readonly #splits: SplitDumps
  /** Dumps and other work under way: waited for at the end. */
  readonly #running = new Set<Promise<void>>()
  readonly #idle = openIdleTimer(giveBack)
  /** Connections to the page server port that come from no criu: anybody on this host can connect. */
  readonly #refusals: FailureLog
  #port: PagePort | undefined
  #remote: RemoteDumps | undefined
  /** Bytes of images that went to the cache. */
  #sent = 0

  /** Throws `EXISTS` or `IO` if the socket cannot be made. */
  constructor(options: ProxyOptions) {
    const { delivery, directory, pagePort, report, signal } = options
    this.#options = options
    // A gate that an earlier proxy left open must not be that of a criu which has its number now.
    this.#work = openWorkDir(directory, CAPTURE_SOCKET, (directory) => {
      clearGates(directory)
      writeScript(directory, 'post-dump')
    })
    hurry()
    const onBytes = (bytes: number): void => {
      this.#sent += bytes
    }
    this.#context = { directory: this.#work.path, report, signal, onBytes }
    this.#chains = new ProxyChains((chain) => {
      this.#track(delivery.abandon(chain), `the chain of snapshot ${chain.id}`)
    })
    this.#splits = openSplitDumps(pagePort !== undefined, signal)
    this.#refusals = openFailureLog(report)
  }

  /** Runs until the signal comes; throws its reason. */
  async run(): Promise<never> {
    const { delivery, pagePort, report, signal, onStatus } = this.#options
    try {
      for (const { id, delivered } of delivery.recover(this.#context)) this.#track(delivered, `snapshot ${id}`)
      signal.addEventListener('abort', this.#onSignal, { once: true })
      this.#remote = this.#openRemote()
      report({ event: 'listening', at: join(this.#work.path, CAPTURE_SOCKET) })
      if (pagePort !== undefined) {
        this.#port = await this.#openPort(pagePort)
        report({ event: 'listening', at: `127.0.0.1:${this.#port.port}` })
      }
      onStatus(() => report({ event: 'status', of: 'proxy', dumps: this.#running.size, sent: this.#sent }))
      report({ event: 'ready' })
      giveReplayMemory(takeReplayMemory())
      return await this.#acceptDumps()
    } finally {
      await this.#close()
    }
  }

  readonly #onSignal = (): void => {
    this.#work.remove(this.#options.signal.reason as Error)
    this.#remote?.close()
  }

  async #close(): Promise<void> {
    this.#port?.close()
    this.#refusals.close()
    this.#remote?.close()
    this.#chains.close()
    this.#work.remove()
    // Work that ends now may still have a message for the cache.
    while (this.#running.size > 0) await Promise.all(this.#running)
    clearGates(this.#work.path)
    rmSync(join(this.#work.path, 'post-dump'), { force: true })
  }

  /** Reports the failure of `task`, unless the proxy ends. */
  #track(task: Promise<void>, what: string): void {
    const { report, signal } = this.#options
    this.#idle.came()
    const tracked = task
      .catch((fault: Error) => void (signal.aborted || report({ event: 'failed', what, fault })))
      .finally(() => {
        this.#running.delete(tracked)
        this.#idle.left()
      })
    this.#running.add(tracked)
  }

  readonly #newId = (): SnapshotId => this.#options.id ?? freshId()

  #openRemote(): RemoteDumps {
    return new RemoteDumps({
      delivery: this.#options.delivery,
      context: this.#context,
      chains: this.#chains,
      newId: this.#newId,
      sendRound: (taken, source, round) => this.#forwardRound(taken, source, round),
      abandon: (chain) => this.#abandon(chain),
      track: (task, what) => this.#track(task, what),
    })
  }

  #openPort(port: number): Promise<PagePort> {
    const take = (socket: Fd, command: CriuCommand): void =>
      this.#track(this.#takePages(socket, command), `the ${command.action} of ${command.tree}`)
    const refuse = (fault: Fault): void => this.#refusals.tell('the page server port', 'a connection', fault)
    return openPagePort(port, take, refuse)
  }

  async #acceptDumps(): Promise<never> {
    for (;;) {
      const socket = await acceptUnix(this.#work.listener)
      const id = this.#newId()
      const half = this.#splits.stream(peerPid(socket))
      this.#track(this.#forwardStream(socket, id, half).finally(half.end), `snapshot ${id}`)
    }
  }

  /** Forwards one dump by `--stream`. */
  async #forwardStream(socket: Fd, id: SnapshotId, half: DumpHalf): Promise<void> {
    const { delivery, signal } = this.#options
    const dump = await acceptDump(socket, this.#work.path, delivery.timeoutMs, signal)
    if (dump === undefined) return
    // This dump may clear the kernel's marks of changed pages, at a moment that we do not see.
    const command = readCriuCommand(dump.pid)
    const breakOff = (): void => this.#chains.breakOff(command?.tree)
    breakOff()
    const incremental = incrementalFault(command)
    if (incremental !== undefined) {
      dump.images().destroy(incremental)
      dump.remove()
      throw incremental
    }
    const splits = command?.splits === true
    // The options of criu may be in a file, where we do not see them.
    if (!splits) half.refuse()
    await delivery.dump(splits ? half.join(dump) : dump, { id, command }, this.#context).finally(breakOff)
  }

  #takePages(socket: Fd, command: CriuCommand): Promise<void> {
    const { splits, pid } = command
    return splits || this.#splits.streams(pid) ? this.#splits.pages(pid, socket) : this.#forwardPages(socket, command)
  }

  /** Forwards one dump, or one round before it, by `--page-server`. */
  async #forwardPages(socket: Fd, command: CriuCommand): Promise<void> {
    const { pid, action, tree, before, directory: images } = command
    let taken: TakenChain
    try {
      taken = this.#chains.take(tree, before, this.#newId)
    } catch (error) {
      closeFd(socket)
      throw error
    }
    const { chain } = taken
    const server = new SocketPageServer(socket, (name) => chain.pagemaps.has(name))
    if (action === 'pre-dump') return this.#forwardRound(taken, server, { tree, images, snapshots: [] })
    const criu = openProcess(pid)
    const ended = criu?.ended ?? Promise.reject(new Fault('CRIU', 'criu ended before its dump began'))
    ended.catch(() => {})
    const dump: IncomingDump = {
      pid,
      bytes: undefined,
      open() {},
      images: (steps) => lastLayer(server, images, { ...steps, ended }),
      remove() {
        server.destroy(new Fault('ABORTED', 'over'))
        criu?.close()
      },
    }
    const request = { id: chain.id, command, chain, layer: nextLayer(chain, true) }
    const sent = await this.#options.delivery.dump(dump, request, this.#context).finally(taken.end)
    if (!sent) await this.#abandon(chain)
  }

  /** Forwards one round, whose other images criu leaves in `images`. The chain is over when this throws. */
  async #forwardRound(
    { chain, keep, end }: TakenChain,
    source: PageServer,
    { images, ...round }: RoundRequest & { images: string },
  ): Promise<void> {
    const { delivery, report } = this.#options
    const { pages, ms } = await delivery.round(chain, source, round, this.#context).catch(async (error: unknown) => {
      end()
      // The cache may have sealed a round without our knowledge.
      await this.#abandon(chain)
      throw error
    })
    keep(images)
    report({ event: 'round', id: chain.id, number: chain.under, pages, bytes: pages * PAGE_BYTES, ms })
  }

  /** Tells the cache that no layer follows, if it can be told. */
  async #abandon(chain: PreCopyChain): Promise<void> {
    await this.#options.delivery.abandon(chain).catch(() => {})
  }
}

/**
 * Gives the proxy priority over other work on a busy host, where it may: CRIU waits for nobody before it kills the
 * tasks, and by then the last pipe must be read (see pipe-reader.ts).
 */
function hurry(): void {
  try {
    setPriority(-10)
  } catch {}
}
