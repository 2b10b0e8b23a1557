/**
 * The chains of one proxy, by the process tree that they are of.
 *
 * A dump takes the chain of its tree away, and only a round that the cache has sealed brings it back: whatever fails, or clears the kernel's
 * marks of changed pages behind our back, leaves none, and the next dump begins anew.
 */
import type { SnapshotId } from '../format/names.ts'
import { openProcess, startTime } from '../kernel/process.ts'
import { type Chain, newChain } from './layers.ts'

export interface Chains {
  /** For a dump of this tree that begins now: the chain that it goes on with, or, unless `goesOn`, a new one. */
  take(tree: number, goesOn: boolean, newId: () => SnapshotId): Taken
  /** Somebody dumps this tree in another way. */
  breakOff(tree: number): void
  /** No more dumps come. */
  close(): void
}

export interface Taken {
  chain: Chain
  /** Its round is sealed: the next dump may go on with it, unless another one began meanwhile. */
  keep(): void
}

interface Entry {
  chain: Chain
  /** Nobody works on it. */
  kept: boolean
  start: number | undefined
  /** Nobody waits for the tree's end any more. */
  release(): void
}

/** `onOver` is told of each chain of rounds that no dump can go on with: the cache still has them. */
export function openChains(onOver: (chain: Chain) => void): Chains {
  const entries = new Map<number, Entry>()

  function remove(tree: number): Entry | undefined {
    const found = entries.get(tree)
    entries.delete(tree)
    found?.release()
    return found
  }

  /** Who works on it learns it when it is to be kept. */
  function breakOff(tree: number): void {
    const found = remove(tree)
    if (found?.kept === true) onOver(found.chain)
  }

  function add(tree: number, chain: Chain): Entry {
    const task = openProcess(tree)
    const entry: Entry = { chain, kept: false, start: startTime(tree), release: () => task?.close() }
    entries.set(tree, entry)
    const over = (): void => {
      if (entries.get(tree) === entry) breakOff(tree)
    }
    task?.ended.then(over, () => {})
    return entry
  }

  return {
    take(tree, goesOn, newId) {
      const found = entries.get(tree)
      const fits = goesOn && found?.kept === true && found.start === startTime(tree)
      if (!fits) breakOff(tree)
      const entry = add(tree, remove(tree)?.chain ?? newChain(newId()))
      const { chain } = entry
      return {
        chain,
        keep() {
          if (entries.get(tree) === entry) entry.kept = true
          else onOver(chain)
        },
      }
    },
    breakOff,
    close() {
      for (const tree of [...entries.keys()]) breakOff(tree)
    },
  }
}
