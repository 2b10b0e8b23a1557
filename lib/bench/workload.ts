/** What the ways to move a process have in common: running criu, hearing daemons, and what comes out. */
import type { ChildProcess } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Fault } from '../fault.ts'
import { decodeDumpStats } from '../format/stats.ts'
import type { Children } from './children.ts'

export interface Course {
  criu: string
  /** The process that is moved. */
  pid: number
  gone: Promise<void>
  /** On a file system in memory; removed by the caller. */
  folder: string
  /** What it starts is ended by the caller. */
  start: Children['start']
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
  missing(): string | undefined
  run(course: Course): Promise<Figures>
}

/** Runs a program to its end. */
export function ran({ start }: Course, program: string, args: string[], cwd?: string): Promise<void> {
  const done = succeeded(start(program, args, cwd === undefined ? {} : { cwd }), [program, ...args].join(' '))
  // Where another one fails before, nobody waits for this one.
  done.catch(() => {})
  return done
}

/** Rejects with what it said, unless it ends well. */
export function succeeded(child: ChildProcess, what: string): Promise<void> {
  let said = ''
  child.stderr?.on('data', (text: Buffer) => {
    said += String(text)
  })
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code) => {
      if (code === 0) resolve()
      else reject(new Fault('CRIU', `${what} exited with ${code}: ${said.trim().split('\n').slice(-3).join(' / ')}`))
    })
  })
}

/** Waits for the words in what a daemon says on stderr. Returns what the pattern caught. */
export function says(child: ChildProcess, pattern: RegExp): Promise<string> {
  let said = ''
  const heard = new Promise<string>((resolve, reject) => {
    child.stderr?.on('data', (text: Buffer) => {
      said += String(text)
      const match = pattern.exec(said)
      if (match !== null) resolve(match[1] ?? '')
    })
    child.once('close', () => reject(new Fault('IO', `a daemon ended: ${said}`)))
  })
  heard.catch(() => {})
  return heard
}

export const seconds = (since: number): number => (performance.now() - since) / 1000
export const frozenIn = (folder: string): number =>
  decodeDumpStats(readFileSync(join(folder, 'stats-dump'))).frozenTime / 1e6

export function make(course: Course, name: string): string {
  const path = join(course.folder, name)
  mkdirSync(path)
  return path
}

export const dumpOf = ({ pid }: Course, directory: string): string[] => ['dump', '-t', `${pid}`, '-D', directory]
export const restoreOf = (directory: string): string[] => ['restore', '-d', '-D', directory]
