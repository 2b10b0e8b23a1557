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
import { tasksRunOn } from '../handover/outcome.ts'
import { onFirstImage } from '../handover/source.ts'
import { openProcess } from '../kernel/process.ts'
import type { Delivery, DeliveryPlace, DumpToDeliver, RoundToDeliver } from '../precopy/delivery.ts'
import { type PreCopyChain, pagesOf, type SentRound } from '../precopy/send-round.ts'
import { type MemorySnapshot, memorySnapshot } from '../store/memory.ts'
import { openPool, type Pool } from '../store/pool.ts'
import { openCriuTimeout } from '../stream/criu-timeout.ts'
import type { Endpoint } from '../stream/endpoint.ts'
import type { ImageSource } from '../stream/image.ts'
import type { Snapshot } from '../stream/send.ts'
import { defer, rejectWhenAborted } from '../stream/wait.ts'
import { openRemoteCacheLink, type RemoteCacheLink } from './cache-link.ts'
import { LONGEST_STRING } from './messages.ts'
import { type SendDumpOptions, sendDump } from './send-dump.ts'

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
  readonly #cache: Endpoint
  readonly #snapshot: string | undefined
  readonly #pool: Pool
  /** The connections of chains whose dump is still to come. */
  readonly #links = new Map<PreCopyChain, RemoteCacheLink>()

  /** Throws `USAGE` for what cannot be the id of a snapshot. */
  constructor({ cache, maxMemory, snapshot, timeoutMs }: RemoteDeliveryOptions) {
    if (snapshot !== undefined) checkSnapshot(snapshot)
    this.timeoutMs = timeoutMs
    this.#cache = cache
    this.#snapshot = snapshot
    this.#pool = openPool(maxMemory)
  }

  async dump(criu: IncomingDump, dump: DumpToDeliver, place: DeliveryPlace): Promise<boolean> {
    const { command, snapshots, chain } = dump
    const { directory, report } = place
    const begun = performance.now()
    const gate = closedGate(directory, criu.pid, 'post-dump')
    const link = this.#takeLink(chain)
    const transfer = new DumpTransfer(criu, command, gate, link, memorySnapshot(this.#pool), this.timeoutMs, place)
    try {
      const ids = snapshots ?? [this.#snapshot ?? idOf(command)]
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
    { snapshots }: RoundToDeliver,
    { signal, onBytes }: DeliveryPlace,
  ): Promise<SentRound> {
    const begun = performance.now()
    const link = this.#takeLink(chain)
    const unlink = link.abortOn(signal)
    const silence = openCriuTimeout(this.timeoutMs, (reason) => link.abort(reason))
    const memory = memorySnapshot(this.#pool)
    try {
      const options = { snapshot: snapshots.at(-1) as string, round: true, silence, signal: link.signal, onBytes }
      const sent = await sendDump(link.outlet, memory, source, options)
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
  debts(): [] {
    return []
  }

  /** The connection of a chain, or a new one. The caller closes it. */
  #takeLink(chain: PreCopyChain | undefined): RemoteCacheLink {
    const link = chain && this.#links.get(chain)
    if (chain !== undefined) this.#links.delete(chain)
    return link ?? openRemoteCacheLink(this.#cache, this.timeoutMs)
  }
}

/**
 * One dump on its way: its criu is let go when all images but inventory.img are sent, and that is sent when the tasks
 * are dead.
 */
class DumpTransfer {
  readonly #criu: IncomingDump
  readonly #command: CriuCommand | undefined
  /** Holds criu at post-dump, if it runs our action script. */
  readonly #gate: Gate
  readonly #link: RemoteCacheLink
  /** The images that are not sent yet. */
  readonly #memory: MemorySnapshot
  readonly #onBytes: (bytes: number) => void
  readonly #process: ReturnType<typeof openProcess>
  readonly #source: ImageSource
  /** Whether criu runs our action script, and so waits for us at post-dump. */
  readonly #waitsForUs: boolean
  /** Criu waits at the gate: everything is written. */
  #isAtGate = false
  /** Resolved when a criu that waits for nobody has written its inventory and then nothing: no more images come. */
  readonly #allWritten = defer<void>()
  readonly #silence: ReturnType<typeof openCriuTimeout>
  /** The signal of the proxy stops the transfer until this is called. */
  readonly #ignoreSignal: () => void
  /** The tasks, once they are frozen. */
  #tree: WatchedTree | undefined

  constructor(
    criu: IncomingDump,
    command: CriuCommand | undefined,
    gate: Gate,
    link: RemoteCacheLink,
    memory: MemorySnapshot,
    timeoutMs: number,
    { directory, signal, onBytes }: DeliveryPlace,
  ) {
    this.#criu = criu
    this.#command = command
    this.#gate = gate
    this.#link = link
    this.#memory = memory
    this.#onBytes = onBytes
    this.#process = openProcess(criu.pid)
    this.#waitsForUs = runsScript(criu.pid, join(directory, 'post-dump'))
    const whenHeld = gate.held.then(() => {
      this.#isAtGate = true
    })
    whenHeld.catch(() => {})
    this.#ignoreSignal = link.abortOn(signal)
    const complete = Promise.race([whenHeld, this.#allWritten.promise])
    this.#source = onFirstImage(criu.images({ complete, taken: async () => {}, answered() {} }), () => {
      this.#tree = watchTree(criu.pid)
    })
    this.#silence = openCriuTimeout(timeoutMs, (reason) => this.#onSilence(reason))
  }

  /** `ids`: the snapshot ids of the rounds before the dump, and its own. */
  async run(ids: readonly string[]): Promise<Snapshot> {
    const { bytes } = this.#criu
    if (bytes !== undefined) {
      const ready = Promise.all([this.#link.connected, this.#memory.reserve(bytes)])
      this.#silence.during(ready).then(
        () => this.#criu.open(),
        () => {},
      )
    }
    const options: SendDumpOptions = {
      snapshot: ids.at(-1) as string,
      before: ids.slice(0, -1),
      silence: this.#silence,
      signal: this.#link.signal,
      onBytes: this.#onBytes,
      onTaken: () => {
        // A criu that does not wait for us kills the tasks now, and a signal comes too late.
        if (!this.#isAtGate) this.#ignoreSignal()
      },
      confirm: () => this.#confirm(),
    }
    const sent = await sendDump(this.#link.outlet, this.#memory, this.#source, options)
    await this.#link.finish()
    return sent
  }

  /** Makes criu fail, if it still waits for us. */
  fail(reason: Error): void {
    this.#gate.shut()
    this.#source.destroy(reason)
  }

  close(): void {
    this.#silence.close()
    this.#ignoreSignal()
    this.#gate.remove()
    this.#criu.remove()
    this.#process?.close()
    this.#tree?.close()
    this.#memory.drop()
  }

  #onSilence(reason: Fault): void {
    if (this.#tree?.isDying()) this.#silence.heard()
    else if (this.#memory.images.has(INVENTORY) && !this.#waitsForUs) this.#allWritten.resolve()
    else this.#link.abort(reason)
  }

  /** Lets criu go, and makes sure that the tasks are dead. Throws `FAILED_DUMP` or `CRIU` where they are not. */
  async #confirm(): Promise<void> {
    if (this.#criu.bytes !== undefined && !this.#isAtGate) throw notAtPostDump()
    this.#link.signal.throwIfAborted()
    if (this.#isAtGate) {
      // From here on only what happens to the tasks counts, and a signal comes too late.
      this.#ignoreSignal()
      this.#gate.open()
      // The script must find the open gate before we remove it.
      await this.#process?.ended
    }
    if (this.#command?.leaves === true) return
    // A dump that failed late has its inventory.img too.
    const fate = await Promise.race([this.#tree?.fate, rejectWhenAborted(this.#link.signal)])
    if (fate === 'alive') throw tasksRunOn()
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

function notAtPostDump(): Fault {
  return new Fault('FAILED_DUMP', 'criu did not come to its post-dump: the dump did not finish', {
    hint: "the process was not moved; see the dump's own log",
  })
}
