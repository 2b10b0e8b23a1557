/**
 * Those who dump with `--remote` on this host: which connection belongs to which dump, when a dump is over, and what it reads.
 *
 * A criu begins with the id of its snapshot (its `-D`), which it pushes to the list, and has a connection for each image then. Whose it is the kernel says.
 * A dump says FINISH, whether it was good or not: only with inventory.img it is one. One that was killed before it could say so is one if it had
 * killed its tasks, which it does when all is written: there is no other copy. A pre-dump says nothing, so it is over when its criu has
 * ended, or when another one begins. Either way what has come before is taken first, and images that are still being written are waited for.
 */

import { closedGate, type Gate } from '../criu/action-script.ts'
import { type CriuCommand, readCriuCommand } from '../criu/command-line.ts'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import type { PageServer } from '../criu/page-server.ts'
import { Fault } from '../fault.ts'
import { type ImageName, INVENTORY, printable, type SnapshotId } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import { endOf, isDying, memoryOfTree, openProcess, type Process, parentOf, startTime } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import type { ProxyChains, TakenChain } from '../precopy/chains.ts'
import type { DumpRequest, RoundRequest } from '../precopy/delivery.ts'
import { nextLayer, type PreCopyChain } from '../precopy/send-round.ts'
import type { Report } from '../progress.ts'
import { defer, rejectAfter } from '../stream/wait.ts'
import { openClients } from './clients.ts'
import { type RemoteImages, remoteImages, roundOf, unfinishedImages } from './images.ts'
import { DUMP_SOCKET, encodeIds, readFirstWord, readIds, unexpectedRequest } from './local-wire.ts'
import { answerRead, type ReadableRound, type Reading, withRound } from './reads.ts'

export interface RemoteDumpsOptions {
  /** Where the socket is, and our action script. */
  directory: string
  chains: ProxyChains
  newId: () => SnapshotId
  /** How long a criu may say nothing before its first image. */
  timeoutMs: number
  /** Sends a pre-dump and keeps the chain as that of `images`. Throws what went wrong; the chain is over then. */
  sendRound(taken: TakenChain, source: PageServer, round: RoundRequest & { images: string }): Promise<void>
  /** Hands over a dump. Returns whether the target has it. */
  sendDump(criu: IncomingDump, dump: DumpRequest): Promise<boolean>
  /** Tells the target that no layer follows, if it can be told. */
  abandon(chain: PreCopyChain): Promise<void>
  /** Work that is waited for at the end, and whose failure is reported. */
  track(work: Promise<void>, what: string): void
  report: Report
}

export interface RemoteDumps {
  close(): void
}

interface Dump extends Reading {
  readonly pid: number
  readonly images: RemoteImages
  readonly command: CriuCommand | undefined
  /** Resolves when nothing of it is under way. */
  readonly settled: Promise<void>
  /** Its criu does no more. */
  over(): void
  release(): void
}

/** In place of a directory: rounds by other ways are not these. */
const REMOTE = 'criu --remote'

/** Offers the socket. Throws `EXISTS` or `IO`. */
export function openRemoteDumps(options: RemoteDumpsOptions): RemoteDumps {
  const { directory, chains, report } = options
  const dumps = new Map<number, Dump>()
  const roundsOf = new WeakMap<PreCopyChain, ReadableRound[]>()
  /** First words are heard in the order in which one process says them. */
  const turns = new Map<number, Promise<void>>()
  const clients = openClients(directory, DUMP_SOCKET, report, inTurn)

  function dumpOf(pid: number, snapshot?: string): Dump | undefined {
    for (let at = pid; at > 0; at = parentOf(at) ?? 0) {
      const found = dumps.get(at)
      if (found !== undefined) return found
    }
    // A child that has written and is gone: nothing but the -D says whose it was.
    const same = [...dumps.values()].filter((dump) => dump.snapshot === snapshot)
    const open = same.filter(({ images }) => !images.isOver)
    const fault = unexpectedRequest(
      `an image of ${printable(snapshot ?? '')}, which two dumps at a time have as their -D`,
    )
    if (open.length > 1) for (const { images } of open) images.destroy(fault)
    return open.at(-1) ?? same.at(-1)
  }

  function begin(pid: number, snapshot: string): Dump {
    const command = readCriuCommand(pid)
    const earlier = [...dumps.values()].filter(
      (dump) => dump.pid === pid || (command !== undefined && dump.command?.tree === command.tree),
    )
    for (const dump of earlier) dump.over()
    const images = remoteImages()
    const criu = openProcess(pid)
    const start = command && startTime(command.tree)
    const hasKilled = (): boolean => {
      if (command === undefined || start === undefined || !images.names.has(INVENTORY)) return false
      return startTime(command.tree) !== start || isDying(command.tree)
    }
    const rounds = defer<readonly ReadableRound[]>()
    const isRound = command?.action === 'pre-dump'
    const whenFree = Promise.all(earlier.map((dump) => dump.settled))
    const forwarded = whenFree.then(() => {
      if (!clients.areHeard) throw stopped()
      return (isRound ? forwardRound : forwardDump)(dump, rounds.resolve)
    })
    const dump: Dump = {
      pid,
      snapshot,
      images,
      command,
      rounds: rounds.promise,
      reader: { form: undefined },
      settled: forwarded
        .finally(() => {
          const over = new Fault('ABORTED', 'the dump is over')
          rounds.reject(over)
          images.destroy(over)
        })
        .catch(() => {}),
      over: () => (isRound || hasKilled() ? images.end() : images.isOver || images.destroy(unfinishedImages())),
      release() {
        criu?.close()
        if (dumps.get(pid) === dump) dumps.delete(pid)
      },
    }
    for (const { pid: other } of earlier) dumps.get(other)?.release()
    dumps.set(pid, dump)
    options.track(forwarded, `the ${isRound ? 'pre-dump' : 'dump'} of ${printable(snapshot)}`)
    void whenEnded(dump, criu)
    return dump
  }

  async function whenEnded(dump: Dump, criu: Process | undefined): Promise<void> {
    try {
      await endOf(dump.pid, criu)
    } catch {
      return
    }
    await heard(dump.pid)
    dump.over()
    await dump.settled
    dump.release()
  }

  /** Everything that this process has said was heard. */
  async function heard(pid: number): Promise<void> {
    clients.takeAll()
    await turns.get(pid)
  }

  /** The chain that it goes on with, or a new one: an id that is there already has no place of its own in the list. */
  async function takeChain({ snapshot }: Dump, tree: number): Promise<TakenChain> {
    const taken = chains.take(tree, REMOTE, options.newId)
    const rounds = roundsOf.get(taken.chain) ?? []
    if (!rounds.some((round) => round.snapshot === snapshot)) return taken
    await options.abandon(taken.chain)
    return chains.take(tree, undefined, options.newId)
  }

  function nameIt({ images, snapshot }: Dump, rounds: readonly ReadableRound[]): string[] {
    const snapshots = [...rounds.map((round) => round.snapshot), snapshot]
    images.name(encodeIds(snapshots))
    return snapshots
  }

  async function forwardRound(dump: Dump, know: (rounds: readonly ReadableRound[]) => void): Promise<void> {
    const { tree } = dump.command as CriuCommand
    const taken = await takeChain(dump, tree)
    const rounds = roundsOf.get(taken.chain) ?? []
    know([...rounds])
    const snapshots = nameIt(dump, rounds)
    // Nobody waits for an answer.
    const source = { ...roundOf(dump.images), answerClose: async () => {} }
    await options.sendRound(taken, source, { tree, images: REMOTE, snapshots })
    roundsOf.set(taken.chain, withRound(rounds, dump))
  }

  async function forwardDump(dump: Dump, know: (rounds: readonly ReadableRound[]) => void): Promise<void> {
    const { pid, command, images } = dump
    // It may clear the kernel's marks of changed pages.
    if (command === undefined) chains.breakOff(undefined)
    const taken = command && (await takeChain(dump, command.tree))
    const rounds = (taken && roundsOf.get(taken.chain)) ?? []
    know(rounds)
    const snapshots = nameIt(dump, rounds)
    const gate = closedGate(directory, pid, 'pre-dump')
    let bytes: number | undefined
    void images.begun.then(gate.remove)
    const criu: IncomingDump = {
      pid,
      get bytes() {
        return bytes
      },
      open: gate.open,
      images(handOver) {
        // At post-dump everything is written.
        handOver?.complete.then(() => heard(pid)).then(images.end, () => {})
        return images
      },
      remove: gate.remove,
    }
    const chained = taken !== undefined && taken.chain.under > 0
    const layer = chained ? nextLayer(taken.chain, true) : undefined
    const id = taken?.chain.id ?? options.newId()
    let sent = false
    try {
      const first = await firstSign(gate, images)
      bytes = first === undefined ? undefined : memoryOfTree(first)
      if (!clients.areHeard) throw stopped()
      sent = await options.sendDump(criu, { id, command, snapshots, layer, chain: taken?.chain })
    } finally {
      gate.remove()
      taken?.end()
      if (!sent && chained) await options.abandon(taken.chain)
    }
  }

  /** Its first task, where it waits for us before it freezes it; undefined where an image has come. Throws `TIMEOUT`. */
  async function firstSign(gate: Gate, images: RemoteImages): Promise<number | undefined> {
    const over = new AbortController()
    const silent = rejectAfter(options.timeoutMs, 'a criu that has connected began no dump', over.signal)
    silent.catch(() => {})
    const held = gate.held.catch(() => undefined)
    try {
      return (await Promise.race([held, images.begun, silent])) ?? undefined
    } finally {
      over.abort()
    }
  }

  async function hear(socket: Fd, pid: number): Promise<void> {
    let ours = true
    try {
      const request = await readFirstWord(socket)
      if (request === undefined) return
      if (request.kind === 'push') {
        const snapshot = (await readIds(socket)).at(-1)
        if (snapshot === undefined) throw unexpectedRequest('a list without a snapshot id')
        begin(pid, snapshot)
      } else if (request.kind === 'finish') {
        if (request.of === 'dump') dumpOf(pid)?.images.end()
      } else if (request.kind === 'write') {
        const dump = dumpOf(pid, request.snapshot) ?? begin(pid, request.snapshot)
        if (request.snapshot !== dump.snapshot) throw clobbering(request, dump)
        ours = false
        dump.images.take(request.name, request.append, socket)
      } else {
        ours = false
        // Whoever waits for the round before to be safe holds up no other word.
        void answerRead(socket, request, dumpOf(pid)).catch((error: unknown) =>
          clients.failed('a read of criu --remote', error),
        )
      }
    } finally {
      if (ours) closeFd(socket)
    }
  }

  function inTurn(socket: Fd, pid: number): Promise<void> {
    const heard = (turns.get(pid) ?? Promise.resolve()).then(() => hear(socket, pid))
    const turn = heard
      .catch(() => {})
      .finally(() => {
        if (turns.get(pid) === turn) turns.delete(pid)
      })
    turns.set(pid, turn)
    return heard
  }

  return {
    close() {
      clients.close()
      for (const dump of dumps.values()) {
        // Nobody else waits for the first one.
        if (dump.images.names.size === 0) dump.images.destroy(stopped())
        dump.release()
      }
    },
  }
}

function stopped(): Fault {
  return new Fault('ABORTED', 'the proxy was stopped')
}

/** What `--auto-dedup` would do to the dump before. */
function clobbering({ name, snapshot }: { name: ImageName; snapshot: string }, dump: Dump): Fault {
  const whose = `${printable(snapshot)}, and this dump is ${printable(dump.snapshot)}`
  return new Fault('REFUSED', `${name} would be written into ${whose}`, { hint: 'dump without --auto-dedup' })
}
