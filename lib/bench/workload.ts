/** What the ways to move a process have in common: the process, running criu, and what comes out. */
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { decodeDumpStats } from '../format/stats.ts'
import { Children } from './children.ts'
import type { Loaded } from './target-process.ts'

/** One move of a process, with the programs that it starts. */
export class Course extends Children {
  readonly criu: string
  /** The process that is moved. */
  readonly pid: number
  readonly gone: Promise<void>
  /** On a file system in memory; removed by the caller. */
  readonly #folder: string

  constructor(criu: string, { pid, gone }: Pick<Loaded, 'pid' | 'gone'>, folder: string, signal: AbortSignal) {
    super(signal)
    this.criu = criu
    this.pid = pid
    this.gone = gone
    this.#folder = folder
  }

  /** Makes a directory. */
  make(name: string): string {
    const path = join(this.#folder, name)
    mkdirSync(path)
    return path
  }

  /** Runs criu dump into a directory. */
  dump(directory: string, ...more: string[]): Promise<void> {
    return this.run(this.criu, ['dump', '-t', `${this.pid}`, '-D', directory, ...more], { cwd: directory })
  }

  /** Runs criu restore from a directory. */
  restore(directory: string, ...more: string[]): Promise<void> {
    return this.run(this.criu, ['restore', '-d', '-D', directory, ...more], { cwd: directory })
  }
}

/** Seconds and bytes; what a contender does not have is missing. */
export interface Figures {
  /** From the start of criu dump until criu restore has let the tasks run. */
  total: number
  /** How long the tasks were frozen, as CRIU says. */
  frozen: number
  proxyCpu?: number
  cacheCpu?: number
  /** The part of it before the freeze: nearly all of it for making memory ready. */
  cacheAheadCpu?: number
  proxyPeak?: number
  cachePeak?: number
  /** Most that the cache and the process held together while it was restored, as a multiple of the process. */
  bothPeak?: number
  /** From the start of the commands until their sockets were there. */
  proxyStart?: number
  cacheStart?: number
  images?: number
}

export interface Contender {
  name: string
  what: string
  /** Why it cannot run here. */
  missing?(): string | undefined
  run(course: Course): Promise<Figures>
}

export const seconds = (since: number): number => (performance.now() - since) / 1000
export const frozenIn = (folder: string): number =>
  decodeDumpStats(readFileSync(join(folder, 'stats-dump'))).frozenTime / 1e6
