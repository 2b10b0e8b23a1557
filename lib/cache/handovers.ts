/**
 * The hand-overs of one cache, by snapshot, and who restores them: a criu that the cache starts, or one that somebody else did.
 */

import { timingSafeEqual } from 'node:crypto'
import { commandName } from '../command-name.ts'
import type { Gate } from '../criu/action-script.ts'
import { type HeldTasks, heldTasks } from '../criu/process-tree.ts'
import { startRestore } from '../criu/restore.ts'
import { checkCriuOptions } from '../criu/run.ts'
import { SERVE_SOCKET } from '../criu/serve.ts'
import { openWorkDir, type PrivateDirectory, type WorkDir } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { Fate, Verdict } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { asFault } from '../format/refusal.ts'
import { NO_TOKEN } from '../format/wire.ts'
import { reportOutcome } from '../handover/outcome.ts'
import { type RecoveredRestore, recoverRestores, restoreDirectory, restoreLabel } from '../handover/recover.ts'
import { openTargetHandover, type TargetHandover } from '../handover/target.ts'
import type { Process } from '../kernel/process.ts'
import type { Report } from '../progress.ts'
import type { Snapshots } from '../store/snapshots.ts'
import { accepting, type FrameReader, type FrameWriter } from '../stream/frames.ts'
import { defer } from '../stream/wait.ts'

/** A restore that was let in. */
export interface AdmittedRestore {
  /** CRIU has closed its socket: resolves when it is known whether the tasks run. */
  finish(): Promise<void>
}

export interface RemoteRestore {
  /** Takes part in the agreement until the client's tasks run, or do not. */
  follow(reader: FrameReader): Promise<void>
  /** The client is gone. If it was ready it holds, and must be told by hand. */
  lost(reason: Fault): void
}

export interface Handovers {
  /** `token`: what a verdict on a new link must show. */
  add(id: SnapshotId, token: Buffer | undefined): void
  /** Takes over what a cache before us, which was killed, holds in the work directory: without images, but alive. */
  recover(): void
  get(id: SnapshotId | undefined): TargetHandover | undefined
  readonly all: TargetHandover[]
  /** Throws `EXISTS` while a hand-over of that id is open, perhaps without images. */
  refuseIfOpen(id: SnapshotId): void
  /** Throws `EXISTS` for a snapshot that has become a process here, unless its images stay for more. */
  refuseIfRunning(id: SnapshotId | undefined): void
  /** Starts criu on it, where the cache is to restore. */
  restore(id: SnapshotId): void
  /**
   * Lets a criu that somebody else started restore the snapshot, held by `gate` if it has one. Throws `EXISTS` where
   * another restore is at work. One without a gate may have run or not: the images stay.
   */
  admit(id: SnapshotId, gate: Gate | undefined, criu: Process | undefined): AdmittedRestore
  /**
   * Lets a client restore the snapshot on its own host; its `ready` and our verdict cross its link. Undefined for a
   * snapshot that has no hand-over, or is over it. Throws `EXISTS`.
   */
  remote(id: SnapshotId, writer: FrameWriter): RemoteRestore | undefined
  /** Throws `MISSING` for an unknown snapshot, and what `Arrival.decide` throws. */
  decide(id: SnapshotId, verdict: Verdict): Promise<Fate>
  /** Throws `MISSING` where the token is not the one of the hand-over: a stranger learns nothing. */
  checkToken(id: SnapshotId, token: Buffer): void
}

interface ArrivalsOptions {
  directory: string
  restore: { criu: string; options: readonly string[] } | undefined
  releaseEarly: boolean
  /** The images stay when the tasks run: whoever asks may restore one more copy. */
  keep: boolean
  report: Report
  signal: AbortSignal
}

function unknownHere(id: SnapshotId): Fault {
  return new Fault('MISSING', `no snapshot ${id} waits for a verdict here`)
}

/** How to give a verdict to the cache in `directory`. */
export function manualCommand(directory: string, id: SnapshotId): string {
  return `${commandName('cache')} -D ${directory} --let-run ${id}, or --drop ${id}`
}

/** Throws where the socket of a restore could not be: before a source relies on it. */
function tryPlace(directory: string): void {
  const secret = restoreDirectory(directory)
  try {
    openWorkDir(secret.path, SERVE_SOCKET).remove()
  } finally {
    secret.remove()
  }
}

/** What a client says of the restore that it holds. */
const news = accepting('ready', 'fate', 'refused')

/** Fates that are remembered, for a verdict that comes twice. */
const MOST_REMEMBERED = 1000

export function openHandovers(
  snapshots: Snapshots,
  { directory, restore, releaseEarly, keep, report, signal }: ArrivalsOptions,
): Handovers {
  const handovers = new Map<SnapshotId, TargetHandover>()
  const tokens = new Map<SnapshotId, Buffer>()
  const label = (id: SnapshotId): string => restoreLabel(id, tokens.get(id))
  if (restore !== undefined) {
    checkCriuOptions(restore.options)
    tryPlace(directory)
  }

  function get(id: SnapshotId): TargetHandover {
    const arrival = handovers.get(id)
    if (arrival === undefined) throw unknownHere(id)
    return arrival
  }

  /** Its images are like any other's: nothing depends on who restores them. */
  function isArchive({ id, state }: TargetHandover): boolean {
    return state === 'dropped' || (state === 'running' && snapshots.has(id))
  }

  function forgetOldest(): void {
    for (const [id, { state }] of handovers) {
      if (handovers.size <= MOST_REMEMBERED) return
      if (state !== 'running' && state !== 'dropped') continue
      handovers.delete(id)
      tokens.delete(id)
    }
  }

  function add(id: SnapshotId, token: Buffer = NO_TOKEN): TargetHandover {
    tokens.set(id, token)
    const arrival = openTargetHandover(id, (outcome) => {
      if (outcome === 'copied') snapshots.decide(id, true)
      else if (outcome === 'running' && (keep || snapshots.pinned.has(id))) snapshots.decide(id, false)
      else snapshots.remove(id)
      forgetOldest()
    })
    handovers.set(id, arrival)
    return arrival
  }

  /** What was released is gone: such a snapshot is not offered a second time. */
  function failed(arrival: TargetHandover, reason: Fault): void {
    if (releaseEarly) snapshots.remove(arrival.id)
    arrival.restoreFailed(reason)
  }

  async function lookAfter({ id, token, held, ended, remove }: RecoveredRestore): Promise<void> {
    const arrival = add(id, token)
    arrival.restore()
    arrival.restored(held)
    report({ event: 'undecided', id, how: manualCommand(directory, id) })
    await ended
    remove()
  }

  async function start(arrival: TargetHandover, criu: string, options: readonly string[]): Promise<void> {
    const { id } = arrival
    const begun = performance.now()
    let secret: PrivateDirectory | undefined
    let work: WorkDir | undefined
    let done = (): void => {}
    // Somebody else restores it already.
    if (arrival.state !== 'sealed' && arrival.state !== 'owning') return
    arrival.restore()
    // A copy that is held may be the only one: a signal leaves it to the next cache here, as a crash would.
    const stop = new AbortController()
    const stopped = (): void => {
      if (arrival.state === 'restoring') stop.abort(signal.reason)
      else report({ event: 'undecided', id, how: manualCommand(directory, id) })
    }
    signal.addEventListener('abort', stopped)
    try {
      secret = restoreDirectory(directory)
      work = openWorkDir(secret.path, SERVE_SOCKET)
      const found = await snapshots.find(id, 0, undefined, { early: true })
      const { images, release } = found
      done = found.use()
      const early = releaseEarly && { onTaken: release }
      const restoring = startRestore(criu, options, images, work, {
        hold: { label: label(id), gates: work.path },
        signal: stop.signal,
        ...early,
      })
      void restoring.held.then(() => arrival.restored(restoring))
      await restoring.done
      report({ event: 'restored', ms: performance.now() - begun })
    } catch (error) {
      failed(arrival, asFault(error))
      if (handovers.get(id)?.state !== 'dropped') {
        report({ event: 'failed', what: `the restore of ${id}`, fault: error as Error })
      }
    } finally {
      signal.removeEventListener('abort', stopped)
      done()
      work?.remove()
      secret?.remove()
    }
  }

  return {
    add,
    recover() {
      for (const restore of recoverRestores(directory)) {
        lookAfter(restore).catch((fault: Error) => report({ event: 'failed', what: restore.id, fault }))
      }
    },
    get all() {
      return [...handovers.values()]
    },
    get: (id) => (id === undefined ? undefined : handovers.get(id)),
    refuseIfOpen(id) {
      const state = handovers.get(id)?.state
      if (state === undefined || state === 'running' || state === 'dropped') return
      throw new Fault('EXISTS', `a snapshot ${id} is here already`, { hint: 'choose another --snapshot ID' })
    },
    refuseIfRunning(id) {
      if (id === undefined || handovers.get(id)?.state !== 'running' || snapshots.has(id)) return
      throw new Fault('EXISTS', `snapshot ${id} was handed over, and runs`, {
        hint: 'one snapshot becomes one process',
      })
    },
    restore(id) {
      if (restore !== undefined) void start(get(id), restore.criu, restore.options)
    },
    admit(id, gate, criu) {
      const arrival = handovers.get(id)
      if (arrival === undefined || isArchive(arrival)) {
        gate?.held.then(gate.open).catch(() => {})
        return { finish: async () => void (gate && (await criu?.ended)) }
      }
      if (gate !== undefined) gate.label(label(id))
      arrival.restore()
      const over = (): void => failed(arrival, new Fault('CRIU', `the criu that restored ${id} failed`))
      // Whether it runs cannot be seen: the images stay.
      if (gate === undefined) {
        arrival.taken = true
        return { finish: async () => arrival.restoreFailed(new Fault('CRIU', 'not held')) }
      }
      const ended = criu?.ended ?? Promise.resolve()
      const runs = Promise.race([gate.resumed.then(() => true), ended.then(() => false)])
      let tasks: HeldTasks | undefined
      const atGate = (): void => {
        tasks = heldTasks(criu?.pid ?? 0)
        arrival.restored({ open: gate.open, shut: gate.shut, runs })
      }
      gate.held.then(atGate).catch(() => {})
      return {
        async finish() {
          const ran = await runs
          tasks?.settle(ran)
          if (!ran) over()
        },
      }
    },
    remote(id, writer) {
      const arrival = handovers.get(id)
      if (arrival === undefined || isArchive(arrival)) return undefined
      arrival.restore()
      const runs = defer<boolean>()
      const say = (verdict: Verdict) => () =>
        void writer.send({ type: 'verdict', verdict, token: NO_TOKEN, id }).catch(runs.reject)
      return {
        async follow(reader) {
          for (;;) {
            const frame = await reader.expect(news)
            if (frame.type === 'ready') arrival.restored({ open: say('go'), shut: say('drop'), runs: runs.promise })
            else if (frame.type === 'fate') return runs.resolve(frame.fate === 'running')
            else throw new Fault(frame.code, `the client refused: ${frame.reason}`)
          }
        },
        lost(reason) {
          const held = arrival.state === 'holding' || arrival.state === 'running'
          if (held) runs.reject(new Fault('LINK', `the client that holds snapshot ${id} is out of reach`))
          else arrival.restoreFailed(reason)
        },
      }
    },
    checkToken(id, token) {
      const own = tokens.get(id) ?? NO_TOKEN
      if (!own.equals(NO_TOKEN) && own.length === token.length && timingSafeEqual(own, token)) return
      throw unknownHere(id)
    },
    async decide(id, verdict) {
      const arrival = get(id)
      const fate = await arrival.decide(verdict)
      if (verdict === 'go' && fate === 'stored') snapshots.decide(id, false)
      try {
        reportOutcome(id, { verdict, fate }, report)
      } catch (fault) {
        report({ event: 'failed', what: `the hand-over of ${id}`, fault: fault as Fault })
      }
      arrival.watcher?.settled()
      return fate
    },
  }
}
