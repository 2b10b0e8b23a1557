/**
 * The image-proxy's end of the wire of `criu --remote`: sends what a criu dumps to us to an image-cache of that time
 * (`--wire criu-remote`).
 *
 * Such a cache takes one connection, and ends with it: so a dump and all rounds before it share one, which waits
 * between them. The cache never answers. So the tasks are let go when our kernel has taken all bytes but those of the
 * last image, and nobody can tell whether they have arrived. Nor is there a verdict that could revoke a dump: its tasks
 * must be dead before inventory.img goes, for criu may still fail. That image is a few bytes of what a connection that
 * breaks in this moment would lose anyway.
 */
import { join } from 'node:path'
import { closedGate, type Gate } from '../criu/action-script.ts'
import { type CriuCommand, runsScript } from '../criu/command-line.ts'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import type { PageServer } from '../criu/page-server.ts'
import { type WatchedTree, watchTree } from '../criu/process-tree.ts'
import { reportSmallPipes } from '../criu/small-pipes.ts'
import { Fault } from '../fault.ts'
import { INVENTORY, printable } from '../format/names.ts'
import { tasksRunOnFault } from '../handover/outcome.ts'
import { onFirstImage } from '../handover/source.ts'
import { openProcess, type Process } from '../kernel/process.ts'
import type { Delivery, DeliveryContext, DumpRequest, RoundRequest } from '../precopy/delivery.ts'
import { type PreCopyChain, pagesOf, type SentRound } from '../precopy/send-round.ts'
import { MemorySnapshot } from '../store/memory.ts'
import { Pool } from '../store/pool.ts'
import { type CriuTimeout, openCriuTimeout } from '../stream/criu-timeout.ts'
import type { Endpoint } from '../stream/endpoint.ts'
import type { ImageSource } from '../stream/image.ts'
import type { Snapshot } from '../stream/summary.ts'
import { abortWith, defer, rejectWhenAborted } from '../stream/wait.ts'
import { RemoteCacheLink } from './cache-link.ts'
import { LONGEST_STRING } from './messages.ts'
import { DumpSender } from './send-dump.ts'

export interface RemoteDeliveryOptions {
  cache: Endpoint
  /** Most bytes of memory for images that are not sent yet. */
  maxMemory: number
  /** The snapshot id of a dump by the stream; the `-D` of the criu that dumps if undefined. */
  snapshot: string | undefined
  /** How long the cache may be out of reach, or take nothing; how long criu may be silent. */
  timeoutMs: number
}

export class RemoteDelivery implements Delivery {
  readonly timeoutMs: number
  readonly #options: RemoteDeliveryOptions
  readonly #pool: Pool
  /** The connections of chains whose dump is still to come. */
  readonly #links = new Map<PreCopyChain, RemoteCacheLink>()

  /** Throws `USAGE` for what cannot be the id of a snapshot. */
  constructor(options: RemoteDeliveryOptions) {
    if (options.snapshot !== undefined) checkSnapshot(options.snapshot)
    this.timeoutMs = options.timeoutMs
    this.#options = options
    this.#pool = new Pool(options.maxMemory)
  }

  async dump(criu: IncomingDump, dump: DumpRequest, place: DeliveryContext): Promise<boolean> {
    const { command, snapshots, chain } = dump
    const { directory, report } = place
    const begun = performance.now()
    const gate = closedGate(directory, criu.pid, 'post-dump')
    const link = this.#takeLink(chain)
    const memory = new MemorySnapshot(this.#pool)
    const transfer = new DumpTransfer({ criu, command, gate, link, memory, place, timeoutMs: this.timeoutMs })
    try {
      const ids = snapshots ?? [this.#options.snapshot ?? idOf(command)]
      const { images, bytes } = await transfer.run(ids)
      const ms = performance.now() - begun
      report({ event: 'sent', id: ids.at(-1) as string, images: images.length, bytes, ms, verified: false })
      return true
    } catch (error) {
      transfer.fail(error as Error)
      throw link.reasonOf(error)
    } finally {
      transfer.close()
      // A restore there waits until the stream ends; after a failure it finds no inventory.img.
      await link.close()
      reportSmallPipes(report)
    }
  }

  async round(
    chain: PreCopyChain,
    source: PageServer,
    { snapshots }: RoundRequest,
    { signal, onBytes }: DeliveryContext,
  ): Promise<SentRound> {
    const begun = performance.now()
    const link = this.#takeLink(chain)
    const unlink = abortWith(link.stop, signal)
    const silence = openCriuTimeout(this.timeoutMs, (reason) => link.stop.abort(reason))
    const memory = new MemorySnapshot(this.#pool)
    try {
      const sent = await new DumpSender({ link, memory, source, snapshots, round: true, silence, onBytes }).run()
      link.signal.throwIfAborted()
      chain.under++
      this.#links.set(chain, link)
      return { pages: pagesOf(sent), ms: performance.now() - begun }
    } catch (error) {
      const reason = link.reasonOf(error)
      await link.close()
      throw reason
    } finally {
      silence.close()
      unlink()
      memory.drop()
    }
  }

  async abandon(chain: PreCopyChain): Promise<void> {
    if (this.#links.has(chain)) await this.#takeLink(chain).close()
  }

  /** Such a cache takes no verdicts. */
  recover(): [] {
    return []
  }

  /** The connection of a chain, or a new one. The caller closes it. */
  #takeLink(chain: PreCopyChain | undefined): RemoteCacheLink {
    const link = chain && this.#links.get(chain)
    if (chain !== undefined) this.#links.delete(chain)
    return link ?? new RemoteCacheLink(this.#options.cache, this.timeoutMs)
  }
}

interface TransferOptions {
  criu: IncomingDump
  /** Undefined where the criu cannot be seen. */
  command: CriuCommand | undefined
  /** Holds criu at post-dump, if it runs our action script. */
  gate: Gate
  link: RemoteCacheLink
  /** Holds the images that are not sent yet. */
  memory: MemorySnapshot
  place: DeliveryContext
  timeoutMs: number
}

/** Sends one dump: lets criu go when all images but inventory.img are sent, and sends that when the tasks are dead. */
class DumpTransfer {
  readonly #options: TransferOptions
  readonly #process: Process | undefined
  readonly #source: ImageSource
  readonly #silence: CriuTimeout
  /** Until this is called the signal of the proxy stops the transfer. */
  readonly #ignoreSignal: () => void
  /** Criu waits at the gate: everything is written. */
  #isAtGate = false
  /** Resolved when a criu that waits for nobody has written its inventory and then nothing: no more images come. */
  readonly #allWritten = defer<void>()
  /** The tasks, once they are frozen. */
  #tree: WatchedTree | undefined

  constructor(options: TransferOptions) {
    const { criu, gate, link, place, timeoutMs } = options
    this.#options = options
    this.#process = openProcess(criu.pid)
    const whenHeld = gate.held.then(() => {
      this.#isAtGate = true
    })
    whenHeld.catch(() => {})
    this.#ignoreSignal = abortWith(link.stop, place.signal)
    const waitsForUs = runsScript(criu.pid, join(place.directory, 'post-dump'))
    const complete = Promise.race([whenHeld, this.#allWritten.promise])
    this.#source = onFirstImage(criu.images({ complete, taken: async () => {}, answered() {} }), () => {
      this.#tree = watchTree(criu.pid)
    })
    this.#silence = openCriuTimeout(timeoutMs, (reason) => this.#onSilence(reason, waitsForUs))
  }

  /** `snapshots`: the snapshot ids of the rounds before the dump, and its own. */
  async run(snapshots: readonly string[]): Promise<Snapshot> {
    const { criu, link, memory, place } = this.#options
    if (criu.bytes !== undefined) {
      const ready = Promise.all([link.connected, memory.reserve(criu.bytes)])
      const open = (): void => criu.open()
      this.#silence.during(ready).then(open, () => {})
    }
    const sender = new DumpSender({
      link,
      memory,
      source: this.#source,
      snapshots,
      silence: this.#silence,
      onBytes: place.onBytes,
      onTaken: () => {
        // A criu that does not wait for us kills the tasks now, and a signal comes too late.
        if (!this.#isAtGate) this.#ignoreSignal()
      },
      confirm: () => this.#confirm(),
    })
    const sent = await sender.run()
    await link.finish()
    return sent
  }

  /** Makes criu fail, if it still waits for us. */
  fail(reason: Error): void {
    this.#options.gate.shut()
    this.#source.destroy(reason)
  }

  close(): void {
    const { criu, gate, memory } = this.#options
    this.#silence.close()
    this.#ignoreSignal()
    gate.remove()
    criu.remove()
    this.#process?.close()
    this.#tree?.close()
    memory.drop()
  }

  #onSilence(reason: Fault, waitsForUs: boolean): void {
    const { memory, link } = this.#options
    if (this.#tree?.isDying()) this.#silence.heard()
    else if (memory.images.has(INVENTORY) && !waitsForUs) this.#allWritten.resolve()
    else link.stop.abort(reason)
  }

  /** Lets criu go, and makes sure that the tasks are dead. Throws `FAILED_DUMP` where they are not. */
  async #confirm(): Promise<void> {
    const { criu, command, gate, link } = this.#options
    if (criu.bytes !== undefined && !this.#isAtGate) {
      throw new Fault('FAILED_DUMP', 'criu did not come to its post-dump: the dump did not finish', {
        hint: "the process was not moved; see the dump's own log",
      })
    }
    link.signal.throwIfAborted()
    if (this.#isAtGate) {
      // From here on only what happens to the tasks counts, and a signal comes too late.
      this.#ignoreSignal()
      gate.open()
      // The script must find the open gate before we remove it.
      await this.#process?.ended
    }
    if (command?.leaves === true) return
    // A dump that failed late has its inventory.img too.
    const fate = await Promise.race([this.#tree?.fate, rejectWhenAborted(link.signal)])
    if (fate === 'alive') throw tasksRunOnFault()
  }
}

function checkSnapshot(text: string): void {
  const bytes = Buffer.byteLength(text)
  if (bytes > 0 && bytes <= LONGEST_STRING) return
  throw new Fault('USAGE', `snapshot id refused: ${printable(text)}`, { hint: 'the -D of the criu that restores' })
}

function idOf(command: CriuCommand | undefined): string {
  if (command !== undefined) return command.images
  throw new Fault('CRIU', 'cannot see the -D of this criu, by which a restore finds its images', {
    hint: 'run this command in the pid namespace of that criu, or add --snapshot DIR',
  })
}
