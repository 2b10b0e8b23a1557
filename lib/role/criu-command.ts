/** What a criu that somebody else started does, read from its command line. */
import { realpathSync } from 'node:fs'
import { isAbsolute } from 'node:path'
import { commandLine } from '../kernel/process.ts'

export interface CriuCommand {
  pid: number
  action: 'pre-dump' | 'dump'
  /** The first of the tasks, by the number that criu knows it by. */
  tree: number
  /** Its directory of images. */
  directory: string
}

/** Options of criu with a value, of those that tell the action from a value (criu/config.c, 4.1.1). */
const TREE = ['-t', '--tree'] as const
const DIRECTORY = ['-D', '--images-dir'] as const

/** Undefined for what is no criu that dumps. */
export function criuCommand(pid: number): CriuCommand | undefined {
  const words = commandLine(pid)
  const at = words.findIndex((word) => word === 'dump' || word === 'pre-dump')
  const tree = Number(optionOf(words, TREE))
  if (at < 1 || !Number.isSafeInteger(tree) || tree < 1) return undefined
  const directory = placeOf(pid, optionOf(words, DIRECTORY) ?? '.')
  return directory === undefined ? undefined : { pid, action: words[at] as CriuCommand['action'], tree, directory }
}

/** In any spelling that getopt takes; the last one counts. */
function optionOf(words: readonly string[], [short, long]: readonly [string, string]): string | undefined {
  return words
    .map((word, at) => {
      if (word === short || word === long) return words[at + 1]
      if (word.startsWith(`${long}=`)) return word.slice(long.length + 1)
      return word.startsWith(short) && !word.startsWith('--') ? word.slice(short.length) : undefined
    })
    .findLast((value) => value !== undefined)
}

function placeOf(pid: number, path: string): string | undefined {
  try {
    return realpathSync(isAbsolute(path) ? path : `/proc/${pid}/cwd/${path}`)
  } catch {
    return undefined
  }
}
