/**
 * What a cache holds, for a person on its host who asks at its own socket: the list, and dropping one of it. What is the only
 * copy of a process, or may become it, is never dropped here: that takes a verdict.
 */

import { commandName } from '../command-name.ts'
import { connectWithin } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { Holding, HoldingState } from '../format/holdings.ts'
import { type SnapshotId, snapshotId } from '../format/names.ts'
import type { Frame } from '../format/wire.ts'
import { request } from '../handover/deliver-verdict.ts'
import { giveManualVerdict } from '../handover/manual-verdict.ts'
import type { TargetState } from '../handover/state-machine.ts'
import type { TargetHandover } from '../handover/target.ts'
import { fdLink } from '../stream/fd-link.ts'
import { unexpected } from '../stream/frames.ts'
import type { CacheContext } from './context.ts'
import { CACHE_SOCKET } from './context.ts'
import { manualCommand } from './handovers.ts'

/** What a hand-over makes of a sealed snapshot. */
const handedOver: Record<TargetState, HoldingState> = {
  receiving: 'arriving',
  sealed: 'undecided',
  restoring: 'restoring',
  holding: 'held',
  owning: 'owning',
  reviving: 'restoring',
  running: 'retained',
  dropped: 'sealed',
}

/** Everything that is held here, the oldest first; also a copy of which an earlier cache had the images. */
export function holdings({ snapshots, handovers }: Pick<CacheContext, 'snapshots' | 'handovers'>): Holding[] {
  const now = performance.now()
  const { all } = snapshots
  const shelved = new Set(all.map(({ id }) => id))
  const copies = handovers.all.filter(({ id, state }) => !shelved.has(id) && hasTasks(state))
  return [
    ...all.map(({ id, state, count, sink, since }) => ({
      ...{ id, count, bytes: sink.held, shared: sink.shared, seconds: (now - since) / 1000 },
      pinned: snapshots.pinned.has(id) && state !== 'leaving',
      state: state === 'sealed' ? stateOf(handovers.get(id)) : state,
    })),
    ...copies.map(({ id, state, since }) => ({
      ...{ id, count: 0, bytes: 0, shared: 0, seconds: (now - since) / 1000, pinned: false },
      state: handedOver[state],
    })),
  ].sort((a, b) => b.seconds - a.seconds)
}

function stateOf(arrival: TargetHandover | undefined): HoldingState {
  if (arrival === undefined) return 'sealed'
  return arrival.taken && arrival.state === 'owning' ? 'taken' : handedOver[arrival.state]
}

/** Tasks that a verdict is still to come for, or a restore at work on them. */
function hasTasks(state: TargetState): boolean {
  return state === 'restoring' || state === 'holding' || state === 'reviving'
}

/**
 * Drops a snapshot or an unfinished chain, also one whose next round is on its way. One that is read is gone for all others at once, its memory with its last reader. Throws
 * `MISSING`, and `REFUSED` for one whose process may be lost with it.
 */
export async function removeHolding(id: SnapshotId, context: CacheContext): Promise<void> {
  const found = holding(id, context)
  const round = context.rounds.get(id)
  if (round !== undefined && !found.pinned) {
    round.link.destroy(new Fault('REFUSED', 'it was removed by hand'))
    await round.over
    // It may have been complete already.
    return void context.snapshots.removeChain(id)
  }
  const reason = refusalFor(found, context.options.directory)
  if (reason !== undefined) throw new Fault('REFUSED', reason)
  if (found.state === 'chain') context.snapshots.removeChain(id)
  else context.snapshots.remove(id)
}

/** What is held by that id, and not removed. Throws `MISSING`. */
export function holding(id: SnapshotId, context: CacheContext): Holding {
  const found = holdings(context).find((each) => each.id === id && each.state !== 'leaving')
  if (found === undefined) throw new Fault('MISSING', `no snapshot ${id} is here`)
  return found
}

/** From now on it stays when its process runs, and when memory runs out; or no longer does. Throws `MISSING`, `REFUSED` where nothing stays. */
export function pinHolding(id: SnapshotId, pinned: boolean, context: CacheContext): void {
  const { snapshots, options } = context
  holding(id, context)
  if (!snapshots.all.some((each) => each.id === id && each.state !== 'leaving'))
    throw new Fault('MISSING', `of snapshot ${id} no images are here`)
  if (!pinned) return void snapshots.pinned.delete(id)
  if (options.releaseEarly) throw new Fault('REFUSED', 'a cache with --release-early keeps nothing that is restored')
  snapshots.pinned.add(id)
}

function refusalFor({ id, state, pinned }: Holding, directory: string): string | undefined {
  if (pinned) return `snapshot ${id} is pinned: ${commandName('cache')} -D ${directory} --unpin ${id}`
  switch (state) {
    case 'arriving':
      return `snapshot ${id} still arrives: its source can end that`
    case 'undecided':
    case 'held':
      return `the verdict of snapshot ${id} is not known: ${manualCommand(directory, id)}`
    case 'restoring':
      return `snapshot ${id} is being restored, and may be the only copy of its process`
    case 'owning':
      return `the source of snapshot ${id} is gone, and these images are its process: restore it`
    case 'sealed':
    case 'retained':
    case 'taken':
    case 'leaving':
    case 'chain':
      return undefined
  }
}

async function asked(directory: string, frame: Frame): Promise<Frame> {
  const socket = connectWithin(directory, CACHE_SOCKET, `no cache runs in ${directory}`)
  return request(fdLink(socket, 'the cache', 'socket'), frame)
}

type Stock = Extract<Frame, { type: 'listed' }>

/** What the cache in `directory` holds. Throws `MISSING` where none runs. */
async function listHoldings(directory: string): Promise<Stock> {
  const answer = await asked(directory, { type: 'list' })
  if (answer.type !== 'listed') throw unexpected(answer)
  return answer
}

async function dropHolding(directory: string, id: SnapshotId): Promise<void> {
  const answer = await asked(directory, { type: 'remove', id })
  if (answer.type !== 'fate' || answer.fate !== 'dropped') throw unexpected(answer)
}

async function pin(directory: string, id: string, pinned: boolean): Promise<void> {
  const answer = await asked(directory, { type: 'pin', id: snapshotId(id, 'USAGE'), pinned })
  if (answer.type !== 'listed' || answer.holdings[0]?.pinned !== pinned) throw unexpected(answer)
}

interface Wishes {
  ls: boolean
  rm?: string | undefined
  pin?: string | undefined
  unpin?: string | undefined
  verdict?: Parameters<typeof giveManualVerdict>[2] | undefined
}

/**
 * Asks the cache that runs in `directory` what the options ask for. Returns a list where that was it, and undefined where they ask for
 * nothing: then a cache is to be. Throws like `connectWithin`, what `removeHolding`, `pinHolding` and `decideByHand`
 * throw, and `USAGE`.
 */
export async function askCache(
  directory: string,
  { ls, rm, pin: pinned, unpin, verdict }: Wishes,
): Promise<Stock | 'done' | undefined> {
  if (ls) return listHoldings(directory)
  if (rm !== undefined) await dropHolding(directory, snapshotId(rm, 'USAGE'))
  else if (pinned !== undefined) await pin(directory, pinned, true)
  else if (unpin !== undefined) await pin(directory, unpin, false)
  else if (verdict !== undefined) await giveManualVerdict(directory, CACHE_SOCKET, verdict)
  else return undefined
  return 'done'
}
