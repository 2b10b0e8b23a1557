/** What the tests are run with, and in which order. */
import { existsSync, readdirSync } from 'node:fs'
import { join, relative } from 'node:path'
import { root } from './run.ts'

export interface Task {
  /** From `test/`. */
  file: string
  pass: string
  env: { FERRY_CRIU?: string; FERRY_NO_SPLICE?: string }
  /** When it has hung, if that is not what it is for the others, ms. */
  limitMs?: number
}

const criu = (suite: string): string => join(root, '.criu', suite, 'criu')
const live = /^real-criu\/(?!faults|page-port|soak)/
const withoutSplice =
  /^(stream|commands|handover|criu|precopy|cache|criu-remote|scripts)\/(?!soak|daemon|build|flatten|bench|connections)/
const passes: (Omit<Task, 'file'> & { files: RegExp })[] = [
  { pass: 'newest CRIU', files: /^(?!real-criu\/soak)/, env: {} },
  { pass: 'newest CRIU, for long', files: /^real-criu\/soak/, env: {}, limitMs: 20 * 60_000 },
  { pass: 'no splice, no CRIU', files: withoutSplice, env: { FERRY_NO_SPLICE: '1', FERRY_CRIU: 'none' } },
  { pass: 'no CRIU', files: /^real-criu/, env: { FERRY_CRIU: 'none' } },
  { pass: 'no splice, CRIU 4.2', files: live, env: { FERRY_NO_SPLICE: '1', FERRY_CRIU: criu('sid') } },
  { pass: 'CRIU 4.2', files: /^real-criu\/(handover|loads)/, env: { FERRY_CRIU: criu('sid') } },
  { pass: 'CRIU 4.1', files: live, env: { FERRY_CRIU: criu('trixie') } },
]

/**
 * What goes first: the soak takes longest and leaves room beside it, the faults mostly wait for time-outs, and the virtual machine takes
 * all that the processors have.
 */
const early = ['real-criu/soak.test.ts', 'real-criu/faults.test.ts', 'vm/vm.test.ts', 'real-criu/faults-ends.test.ts']
const place = ({ file }: Task): number => [...early, file].indexOf(file)

const ALL = '--all'

/** All files with one of those words in their names, once for each pass. With `--all`, or no word, all files at all. */
export function tasks(words: readonly string[]): Task[] {
  const isWanted = (file: string): boolean => words.some((word) => file.includes(word))
  const all = words.length === 0 || words.includes(ALL)
  const files = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.test.ts'))
    .filter((file) => all || isWanted(file))
    .sort()
  const found = passes.flatMap(({ files: which, ...task }) => {
    const { FERRY_CRIU: program = 'none' } = task.env
    if (program === 'none' || existsSync(program))
      return files.filter((file) => which.test(file)).map((file) => ({ file, ...task }))
    console.log(`skipped: ${relative(root, program)} could not be fetched`)
    return []
  })
  return found.sort((a, b) => place(a) - place(b))
}
