/**
 * The list of what a cache holds, and dropping or pinning one of it, for an operator who asks at the cache's own
 * socket. A snapshot that is the only copy of a process, or may become it, is never dropped here: that takes a verdict.
 */

import { commandName } from '../command-name.ts'
import { connectWithin } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { Frame, FrameOf } from '../format/frame-types.ts'
import type { Holding, HoldingState } from '../format/holdings.ts'
import { type SnapshotId, snapshotId } from '../format/names.ts'
import { request } from '../handover/deliver-verdict.ts'
import { giveManualVerdict, manualCommand } from '../handover/manual-verdict.ts'
import type { TargetState } from '../handover/state-machine.ts'
import type { TargetHandover } from '../handover/target.ts'
import { fdLink } from '../stream/fd-link.ts'
import { unexpected } from '../stream/frames.ts'
import { CACHE_SOCKET, type CacheContext } from './context.ts'

/** The state in the list of a snapshot whose hand-over is in this state. */
const listedState: Record<TargetState, HoldingState> = {
  receiving: 'arriving',
  sealed: 'undecided',
  restoring: 'restoring',
  holding: 'held',
  owning: 'owning',
  reviving: 'restoring',
  running: 'retained',
  dropped: 'sealed',
}

/** States in which there are restored tasks that wait for a verdict, or a restore is at work. */
const withTasks: readonly TargetState[] = ['restoring', 'holding', 'reviving']

/** Everything that is held here, the oldest first; also a held restore whose images an earlier cache had. */
function holdings({ snapshots, handovers }: Pick<CacheContext, 'snapshots' | 'handovers'>): Holding[] {
  const now = performance.now()
  const { all } = snapshots
  const stored = new Set(all.map(({ id }) => id))
  const copies = handovers.all.filter(({ id, state }) => !stored.has(id) && withTasks.includes(state))
  return [
    ...all.map(({ id, state, count, sink, since }) => ({
      ...{ id, count, bytes: sink.held, shared: sink.shared, seconds: (now - since) / 1000 },
      pinned: snapshots.pinned.has(id) && state !== 'leaving',
      state: state === 'sealed' ? stateOf(handovers.get(id)) : state,
    })),
    ...copies.map(({ id, state, since }) => ({
      ...{ id, count: 0, bytes: 0, shared: 0, seconds: (now - since) / 1000, pinned: false },
      state: listedState[state],
    })),
  ].sort((a, b) => b.seconds - a.seconds)
}

function stateOf(handover: TargetHandover | undefined): HoldingState {
  if (handover === undefined) return 'sealed'
  return handover.taken && handover.state === 'owning' ? 'taken' : listedState[handover.state]
}

/**
 * Drops a snapshot or an unfinished chain, also one whose next round is on its way. Nobody finds it any more; while
 * somebody still reads it its memory stays. Throws `MISSING`, and `REFUSED` where a process may be lost with it.
 */
async function removeHolding(id: SnapshotId, context: CacheContext): Promise<void> {
  const found = holding(id, context)
  const round = context.incomingRounds.get(id)
  if (round !== undefined && !found.pinned) {
    round.link.destroy(new Fault('REFUSED', 'it was removed by hand'))
    await round.over
    // The round may have been sealed before.
    return void context.snapshots.removeChain(id)
  }
  const reason = refusalFor(found, context.options.directory)
  if (reason !== undefined) throw new Fault('REFUSED', reason)
  if (found.state === 'chain') context.snapshots.removeChain(id)
  else context.snapshots.remove(id)
}

/** The snapshot or chain with that id, unless it was removed. Throws `MISSING`. */
function holding(id: SnapshotId, context: CacheContext): Holding {
  const found = holdings(context).find((each) => each.id === id && each.state !== 'leaving')
  if (found === undefined) throw new Fault('MISSING', `no snapshot ${id} is here`)
  return found
}

/**
 * Pins or unpins: a pinned snapshot stays when its process runs, and when memory runs out. Throws `MISSING`, and
 * `REFUSED` for a cache with `--release-early`.
 */
function pinHolding(id: SnapshotId, pinned: boolean, context: CacheContext): void {
  const { snapshots, options } = context
  holding(id, context)
  if (!snapshots.all.some((each) => each.id === id && each.state !== 'leaving'))
    throw new Fault('MISSING', `no images of snapshot ${id} are here`)
  if (!pinned) return void snapshots.pinned.delete(id)
  if (options.releaseEarly) throw new Fault('REFUSED', 'a cache with --release-early keeps nothing that is restored')
  snapshots.pinned.add(id)
}

/** Why it must not be dropped; undefined if it may. */
function refusalFor({ id, state, pinned }: Holding, directory: string): string | undefined {
  if (pinned) return `snapshot ${id} is pinned: ${commandName('cache')} -D ${directory} --unpin ${id}`
  const undecided = `the verdict of snapshot ${id} is not known: ${manualCommand('cache', directory, id)}`
  const reasons: Record<HoldingState, string | undefined> = {
    arriving: `snapshot ${id} still arrives: its source can end that`,
    undecided,
    held: undecided,
    restoring: `snapshot ${id} is being restored, and may be the only copy of its process`,
    owning: `the source of snapshot ${id} is gone, and these images are its process: restore it`,
    sealed: undefined,
    retained: undefined,
    taken: undefined,
    leaving: undefined,
    chain: undefined,
  }
  return reasons[state]
}

/** Carries out a request of an operator, and returns the answer. Throws `MISSING` and `REFUSED`. */
export async function answerAdmin(frame: FrameOf<'list' | 'remove' | 'pin'>, context: CacheContext): Promise<Frame> {
  if (frame.type === 'remove') {
    await removeHolding(frame.id, context)
    return { type: 'fate', fate: 'dropped' }
  }
  if (frame.type === 'pin') {
    pinHolding(frame.id, frame.pinned, context)
    return { type: 'listed', total: 1, holdings: [holding(frame.id, context)] }
  }
  const all = holdings(context)
  return { type: 'listed', total: all.length, holdings: all }
}

/** The options of the command `cache` that ask a running cache for something. */
interface AdminOptions {
  ls: boolean
  rm?: string | undefined
  pin?: string | undefined
  unpin?: string | undefined
  verdict?: Parameters<typeof giveManualVerdict>[2] | undefined
}

async function ask(directory: string, frame: Frame): Promise<Frame> {
  const socket = connectWithin(directory, CACHE_SOCKET, `no cache runs in ${directory}`)
  return request(fdLink(socket, 'the cache', 'socket'), frame)
}

/**
 * Asks the cache that runs in `directory` what the options ask for. Returns the list for `--ls`, and undefined if the
 * options ask for nothing: then the command is to run a cache. Throws what `connectWithin`, `removeHolding`,
 * `pinHolding` and `giveManualVerdict` throw, and `USAGE`.
 */
export async function askCache(
  directory: string,
  { ls, rm, pin, unpin, verdict }: AdminOptions,
): Promise<FrameOf<'listed'> | 'done' | undefined> {
  const toPin = pin ?? unpin
  if (ls) {
    const answer = await ask(directory, { type: 'list' })
    if (answer.type !== 'listed') throw unexpected(answer)
    return answer
  }
  if (rm !== undefined) {
    const answer = await ask(directory, { type: 'remove', id: snapshotId(rm, 'USAGE') })
    if (answer.type !== 'fate' || answer.fate !== 'dropped') throw unexpected(answer)
  } else if (toPin !== undefined) {
    const pinned = pin !== undefined
    const answer = await ask(directory, { type: 'pin', id: snapshotId(toPin, 'USAGE'), pinned })
    if (answer.type !== 'listed' || answer.holdings[0]?.pinned !== pinned) throw unexpected(answer)
  } else if (verdict !== undefined) await giveManualVerdict(directory, CACHE_SOCKET, verdict)
  else return undefined
  return 'done'
}
