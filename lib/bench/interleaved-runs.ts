/** Runs of all contenders, one after the other and again in the other order, so that what drifts hits all alike. */
import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { formatSize } from '../size.ts'
import { type Kind, type Loaded, startMemory } from './target-process.ts'
import { type Contender, Course, type Figures } from './workload.ts'

export interface BenchOptions {
  /** Bytes, multiples of 1 MiB. */
  sizes: readonly number[]
  runs: number
  kind: Kind
  signal: AbortSignal
  /** A line for people, as it goes. */
  say: (line: string) => void
}

export interface MoveOptions extends BenchOptions {
  criu: string
  contenders: readonly Contender[]
  /** Processes more of 64 KiB each, children of the one. */
  children: number
  /** A directory on a file system in memory. */
  place: string
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
export async function race(options: MoveOptions): Promise<Lane[]> {
  const { contenders, sizes, runs, say, signal } = options
  const lanes: Lane[] = []
  for (const bytes of sizes) {
    const heat = contenders.map((contender) => ({ contender, results: [] as Result[] }))
    lanes.push(...heat.map(({ contender, results }) => ({ name: contender.name, bytes, results })))
    for (const { contender, results } of interleaved(heat, runs)) {
      signal.throwIfAborted()
      const result = await once(contender, bytes, options)
      results.push(result)
      const times = `stood still for ${result.downtime.toFixed(3)} s, ${result.total.toFixed(3)} s in all`
      say(`${contender.name} ${formatSize(bytes)}: ${times}`)
    }
  }
  return lanes
}

async function once(contender: Contender, bytes: number, options: MoveOptions): Promise<Result> {
  const { criu, kind, children, place, signal } = options
  const folder = mkdtempSync(join(place, 'ferry-bench-'))
  let loaded: Loaded | undefined
  let course: Course | undefined
  try {
    loaded = await startMemory({ bytes, kind, children, folder })
    course = new Course(criu, loaded, folder, signal)
    const figures = await contender.run(course)
    return { ...figures, downtime: await loaded.verify() }
  } catch (error) {
    signal.throwIfAborted()
    throw error
  } finally {
    await course?.end()
    loaded?.kill()
    rmSync(folder, { recursive: true, force: true })
  }
}

/** The items `runs` times over, each second time in the other order. */
export function* interleaved<Item>(items: readonly Item[], runs: number): Generator<Item> {
  for (let run = 0; run < runs; run++) yield* run % 2 === 0 ? items : items.toReversed()
}

/** The least and the most. */
export function spread(values: readonly number[]): string {
  return `${Math.min(...values).toFixed(2)}-${Math.max(...values).toFixed(2)}`
}

/** The middle one; of an even number the upper of the two. */
export function median(values: readonly number[]): number {
  return values.toSorted((one, other) => one - other)[values.length >> 1] ?? Number.NaN
}
