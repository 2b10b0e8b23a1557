/**
 * The chains of one proxy, by the process tree that they are of.
 *
 * A dump takes the chain of its tree away, and only a round that the cache has sealed brings it back: whatever fails, or clears the kernel's
 * marks of changed pages behind our back, leaves none, and the next dump begins anew.
 */
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import { lockMarks, openProcess, parentOf, startTime } from '../kernel/process.ts'
import { newChain, type PreCopyChain } from './send-round.ts'

export interface ProxyChains {
  /**
   * For a dump of this tree that begins now: the chain whose last round left its images in `before`, or a new one. Throws `EXISTS` where the marks
   * are another's (see `lockMarks`).
   */
  take(tree: number, before: string | undefined, newId: () => SnapshotId): TakenChain
  /** Somebody dumps this tree in another way; or one that we do not know. Those that it is a part of, or that are a part of it, are over too. */
  breakOff(tree: number | undefined): void
  /** No more dumps come. */
  close(): void
}

export interface TakenChain {
  chain: PreCopyChain
  /** Its round is sealed, and criu's images are in `directory`: the next dump may go on with it, unless another one began meanwhile. */
  keep(directory: string): void
  /** It is over: the marks are nobody's, unless it was kept. */
  end(): void
}

interface Entry {
  chain: PreCopyChain
  /** Of criu's images of its last round; undefined while somebody works on it. */
  directory: string | undefined
  start: number | undefined
  /** Nobody waits for the tree's end any more, and its marks are anybody's. */
  release(): void
}

/** `onOver` is told of each chain of rounds that no dump can go on with: the cache still has them. */
export function openProxyChains(onOver: (chain: PreCopyChain) => void): ProxyChains {
  const entries = new Map<number, Entry>()

  function remove(tree: number): Entry | undefined {
    const found = entries.get(tree)
    entries.delete(tree)
    found?.release()
    return found
  }

  /** Who works on it learns it when it is to be kept. */
  function end(tree: number): void {
    const found = remove(tree)
    if (found?.directory !== undefined) onOver(found.chain)
  }

  function breakOff(tree: number | undefined): void {
    for (const root of [...entries.keys()]) if (tree === undefined || related(root, tree)) end(root)
  }

  /** Another one may begin with a part of this tree, or hold it. */
  function breakOffOthers(tree: number): void {
    for (const root of [...entries.keys()]) if (root !== tree && related(root, tree)) end(root)
  }

  function add(tree: number, chain: PreCopyChain): Entry {
    const unlock = lockMarks(tree)
    if (unlock === undefined) {
      if (chain.under > 0) onOver(chain)
      throw taken(tree)
    }
    const task = openProcess(tree)
    const release = (): void => {
      task?.close()
      unlock()
    }
    const entry: Entry = { chain, directory: undefined, start: startTime(tree), release }
    entries.set(tree, entry)
    const over = (): void => {
      if (entries.get(tree) === entry) end(tree)
    }
    task?.ended.then(over, () => {})
    return entry
  }

  return {
    take(tree, before, newId) {
      const found = entries.get(tree)
      const fits = before !== undefined && found?.directory === before && found.start === startTime(tree)
      breakOffOthers(tree)
      if (!fits) end(tree)
      const entry = add(tree, remove(tree)?.chain ?? newChain(newId()))
      const { chain } = entry
      return {
        chain,
        keep(directory) {
          if (entries.get(tree) === entry) entry.directory = directory
          else onOver(chain)
        },
        end() {
          if (entries.get(tree) === entry && entry.directory === undefined) remove(tree)
        },
      }
    },
    breakOff,
    close: () => breakOff(undefined),
  }
}

function taken(tree: number): Fault {
  return new Fault('EXISTS', `a pre-copy, or another proxy, is at work on process ${tree}, or on a part of its tree`, {
    hint: 'wait until it has ended',
  })
}

function related(one: number, other: number): boolean {
  return one === other || isBelow(one, other) || isBelow(other, one)
}

function isBelow(task: number, root: number): boolean {
  for (let parent = parentOf(task); parent !== undefined && parent > 0; parent = parentOf(parent)) {
    if (parent === root) return true
  }
  return false
}
