/** The floors of the house: what may import what, and who may print. */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize, relative } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'

const test = suite('floors')

const root = dirname(import.meta.dirname)

interface SourceFile {
  /** From the root of the repository: `lib/format/wire.ts`. */
  path: string
  text: string
}

function filesOf(folder: string): SourceFile[] {
  const names = readdirSync(join(root, folder), { recursive: true }).map(String)
  const files = names
    .filter((name) => name.endsWith('.ts'))
    .map((name) => {
      const text = readFileSync(join(root, folder, name), 'utf8')
      return { path: join(folder, name), text }
    })
  return files.sort((a, b) => (a.path < b.path ? -1 : 1))
}

/** Everything that a file imports, in any way; ours as a path from the root. */
function importsOf({ path, text }: SourceFile): string[] {
  const found = text.matchAll(/\b(?:from|import|require)\s*\(?\s*(['"])([^'"]+)\1/g)
  return [...found].map(([, , name = '']) => (name.startsWith('.') ? normalize(join(dirname(path), name)) : name))
}

/** `lib/format` for its files, `floor 0` for the files of lib itself. */
function floorOf(path: string): string {
  const [top = '', folder = '', file] = path.split('/')
  if (top !== 'lib') return top
  return file === undefined ? 'floor 0' : `lib/${folder}`
}

/** The floors that a floor may import, beside itself. */
const below: Record<string, readonly string[]> = {
  'floor 0': [],
  'lib/format': ['floor 0'],
  'lib/kernel': ['floor 0'],
  'lib/cli': ['floor 0', 'lib/kernel'],
  'lib/stream': ['floor 0', 'lib/format', 'lib/kernel'],
  'lib/store': ['floor 0', 'lib/format', 'lib/kernel', 'lib/stream'],
  'lib/role': ['floor 0', 'lib/format', 'lib/kernel', 'lib/stream', 'lib/store'],
  'lib/bench': ['floor 0', 'lib/format', 'lib/kernel', 'lib/stream', 'lib/store', 'lib/role'],
}

const lib = filesOf('lib')
const scripts = filesOf('scripts')
const tests = filesOf('test')

test('an import points down, or sideways inside its folder', () => {
  assert.equal(
    new Set(lib.map(({ path }) => floorOf(path))),
    new Set(Object.keys(below)),
    'a floor that is not in the plan',
  )
  let ours = 0
  for (const file of lib) {
    const floor = floorOf(file.path)
    for (const name of importsOf(file)) {
      if (!name.includes('/') || !name.endsWith('.ts')) continue
      ours++
      const target = floorOf(name)
      assert.ok(target === floor || below[floor]?.includes(target), `${file.path} imports ${name}`)
    }
  }
  assert.ok(ours > 50, `only ${ours} imports were found`)
})

test('floor 0 imports nothing but the error class', () => {
  for (const file of lib.filter(({ path }) => floorOf(path) === 'floor 0')) {
    assert.equal(
      importsOf(file).filter((name) => name !== 'lib/fault.ts'),
      [],
      file.path,
    )
  }
  assert.equal(lib.filter(({ path }) => path === 'lib/fault.ts').map(importsOf), [[]])
})

test('koffi is imported in one file', () => {
  const importers = [...lib, ...scripts, ...tests].filter((file) =>
    importsOf(file).some((name) => /^koffi(\/|$)/.test(name)),
  )
  assert.equal(
    importers.map(({ path }) => path),
    ['lib/kernel/libc.ts'],
  )
})

test('a role never prints, nor does a store, a stream or a bench', () => {
  const quiet = lib.filter(({ path }) => /^lib\/(role|store|stream|bench)\//.test(path))
  const printing = quiet.flatMap(({ path, text }) =>
    text
      .split('\n')
      .filter((line) => /\bconsole\b|\bprocess\.std(in|out|err)\b/.test(line))
      .map((line) => `${path}: ${line.trim()}`),
  )
  const allowed = [
    /^lib\/criu\/run\.ts: .*process\.stderr\.write\(`\$\{line\}\\n`\)$/, // criu's own messages, passed on
    /^lib\/stream\/endpoint\.ts: .*\w+Link\(process\.std(in|out), /, // handed over as a stream
  ]
  assert.equal(
    printing.filter((line) => !allowed.some((pattern) => pattern.test(line))),
    [],
  )
  assert.ok(quiet.length > 15)
})

test('every test file runs its tests', () => {
  const files = tests.filter(({ path }) => path.endsWith('.test.ts'))
  for (const { path, text } of files) {
    const suites = [...text.matchAll(/^const (\w+) = suite[<(]/gm)].map(([, name]) => name)
    assert.ok(suites.length > 0, `${path} has no suite`)
    for (const name of suites)
      assert.match(text, new RegExp(`^${name}\\.run\\(\\)$`, 'm'), `${path} never runs ${name}`)
    assert.not.match(text, /\btest\.only\(/, `${path} leaves tests out`)
  }
  assert.ok(files.some(({ path }) => path === relative(root, import.meta.filename)))
})

test.run()
