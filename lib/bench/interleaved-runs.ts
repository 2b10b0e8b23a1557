/** Runs of all contenders, one after the other and again in the other order, so that what drifts hits all alike. */
import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { openChildren } from './children.ts'
import { type Kind, type Loaded, startMemory } from './target-process.ts'
import type { Contender, Figures } from './workload.ts'

export interface RaceOptions {
  criu: string
  contenders: readonly Contender[]
  /** Bytes, multiples of 1 MiB. */
  sizes: readonly number[]
  runs: number
  kind: Kind
  /** Processes more of 64 KiB each, children of the one. */
  children: number
  /** On a file system in memory. */
  place: string
  signal: AbortSignal
  /** Told of every run. */
  onRun: (name: string, bytes: number, result: Result) => void
}

/** What one run came to. Its memory was verified. */
export interface Result extends Figures {
  /** How long the process stood still, by its own clock: from the freeze until it runs. */
  downtime: number
}

export interface Lane {
  name: string
  bytes: number
  results: Result[]
}

/** Throws what a contender throws, and `DIGEST` for a process whose memory is not what it was. */
export async function race(options: RaceOptions): Promise<Lane[]> {
  const { contenders, sizes, runs, onRun, signal } = options
  const lanes: Lane[] = []
  for (const bytes of sizes) {
    const heat = contenders.map((contender) => ({
      contender,
      lane: { name: contender.name, bytes, results: [] as Result[] },
    }))
    lanes.push(...heat.map(({ lane }) => lane))
    for (let run = 0; run < runs; run++) {
      for (const { contender, lane } of run % 2 === 0 ? heat : heat.toReversed()) {
        signal.throwIfAborted()
        const result = await once(contender, bytes, options)
        lane.results.push(result)
        onRun(contender.name, bytes, result)
      }
    }
  }
  return lanes
}

async function once(
  contender: Contender,
  bytes: number,
  { criu, kind, children, place, signal }: RaceOptions,
): Promise<Result> {
  const folder = mkdtempSync(join(place, 'ferry-bench-'))
  const { start, end } = openChildren(signal)
  let loaded: Loaded | undefined
  try {
    loaded = await startMemory({ bytes, kind, children, folder })
    const { pid, gone, verify } = loaded
    const figures = await contender.run({ criu, pid, gone, folder, start })
    return { ...figures, downtime: await verify() }
  } catch (error) {
    signal.throwIfAborted()
    throw error
  } finally {
    await end()
    loaded?.kill()
    rmSync(folder, { recursive: true, force: true })
  }
}

/** The middle one; of an even number the upper of the two. */
export function median(values: readonly number[]): number {
  return values.toSorted((one, other) => one - other)[values.length >> 1] ?? Number.NaN
}
