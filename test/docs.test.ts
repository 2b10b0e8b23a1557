/** The documents: short lines, links that lead somewhere, and files that exist, also in the npm package. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { root, run } from './support/run.ts'

const test = suite('docs')

const LONGEST_LINE = 100

interface Document {
  /** From the root of the repository: `docs/cache.md`. */
  path: string
  text: string
  /** In the npm package. */
  packed: boolean
}

function documentsIn(folder: string, packed = true): Document[] {
  const names = readdirSync(join(root, folder), { recursive: folder !== '.' }).map(String)
  return names
    .filter((name) => name.endsWith('.md'))
    .map((name) => ({ path: normalize(join(folder, name)), packed }))
    .map((document) => ({ ...document, text: readFileSync(join(root, document.path), 'utf8') }))
}

const documents = [...documentsIn('.'), ...documentsIn('docs'), ...documentsIn('fixtures', false)]

/** The lines that are no table and no code, with their numbers. */
function proseOf(text: string): [number, string][] {
  let fenced = false
  return [...text.split('\n').entries()].filter(([, line]) => {
    if (line.startsWith('```')) fenced = !fenced
    return !fenced && !/^(\||```| {4})/.test(line)
  })
}

/**
 * Where the links of a document lead: paths from the root, each with the heading that is meant. Not those to the web.
 */
function linksOf({ path, text }: Document): { file: string; heading: string | undefined }[] {
  const prose = proseOf(text).map(([, line]) => line)
  const tables = text.split('\n').filter((line) => line.startsWith('|'))
  const found = [...prose, ...tables].join('\n').matchAll(/\]\(([^)\s]+)\)/g)
  return [...found]
    .map(([, target = '']) => target)
    .filter((target) => !/^\w+:/.test(target))
    .map((target) => {
      const [file = '', heading] = target.split('#')
      return { file: file === '' ? path : normalize(join(dirname(path), file)), heading }
    })
}

/** The names that GitHub gives to the headings of a document. */
function anchorsOf(text: string): string[] {
  const headings = [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) => heading)
  return headings.map((heading) =>
    heading
      .toLowerCase()
      .replace(/[^\w\- ]/g, '')
      .replaceAll(' ', '-'),
  )
}

test('README has at most 150 lines, and no line above 100 columns', () => {
  const lines = readFileSync(join(root, 'README.md'), 'utf8').trimEnd().split('\n')
  assert.ok(lines.length <= 150, `${lines.length} lines`)
  assert.equal(
    lines.filter((line) => line.length > LONGEST_LINE),
    [],
  )
})

test('no line of prose is above 100 columns', () => {
  assert.ok(documents.length > 15)
  const long = documents.flatMap(({ path, text }) =>
    proseOf(text)
      .filter(([, line]) => line.length > LONGEST_LINE)
      .map(([number]) => `${path}:${number + 1}`),
  )
  assert.equal(long, [])
})

test('each relative link leads to a file, and to a heading of it', () => {
  let links = 0
  for (const document of documents) {
    for (const { file, heading } of linksOf(document)) {
      links++
      assert.ok(existsSync(join(root, file)), `${document.path} links to ${file}`)
      if (heading === undefined) continue
      const anchors = anchorsOf(readFileSync(join(root, file), 'utf8'))
      assert.ok(anchors.includes(heading), `${document.path} links to ${file}#${heading}`)
    }
  }
  assert.ok(links > 50, `only ${links} links were found`)
})

test('what a document in the npm package links to is in the package', async () => {
  const ran = await run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: root })
  assert.is(ran.code, 0, ran.stderr)
  const [{ files }] = JSON.parse(ran.stdout.toString()) as [{ files: { path: string }[] }]
  const packed = files.map(({ path }) => path)
  const has = (file: string): boolean => packed.some((path) => path === file || path.startsWith(`${file}/`))
  for (const document of documents.filter(({ packed }) => packed)) {
    assert.ok(has(document.path), `${document.path} is not in the package`)
    for (const { file } of linksOf(document)) assert.ok(has(file), `${document.path} links to ${file}`)
  }
})

/**
 * The files of lib and test that a text names: `lib/store/pool.ts`, `test/vm`, and without their ending tests, of which
 * `test/criu/{capture,serve}` names two.
 */
function filesIn(text: string): string[] {
  const named = [...text.matchAll(/(?<![\w./-])((?:lib|test)\/[\w./-]*)(?:\{([\w,-]+)\}|(?<=\w))/g)]
  return named
    .flatMap(([, folder = '', several]) => several?.split(',').map((name) => `${folder}${name}`) ?? [folder])
    .map((path) => path.replace(/\.$/, ''))
    .map((path) => (existsSync(join(root, path)) || path.endsWith('.ts') ? path : `${path}.test.ts`))
}

test('each file of lib and test that a document names is there', () => {
  assert.equal(filesIn('lib/a.ts, `test/criu/{capture,serve}`, test/nothing/b.'), [
    'lib/a.ts',
    'test/criu/capture.test.ts',
    'test/criu/serve.test.ts',
    'test/nothing/b.test.ts',
  ])
  // What was is told in the changelog.
  const named = documents
    .filter(({ path }) => path !== 'CHANGELOG.md')
    .flatMap(({ path, text }) => filesIn(text).map((file) => ({ path, file })))
  assert.ok(named.length > 80, `only ${named.length} were found`)
  for (const { path, file } of named) assert.ok(existsSync(join(root, file)), `${path} names ${file}`)
})

test('each limit that a table names is in the file that the table names', () => {
  let names = 0
  for (const { path, text } of documents) {
    for (const row of text.split('\n').filter((line) => line.startsWith('| '))) {
      const [, , cell = ''] = row.split('|')
      const files = [...row.matchAll(/`(lib\/[\w./-]+\.ts)`/g)].map(([, file = '']) => file)
      if (files.length === 0) continue
      const code = files.map((file) => readFileSync(join(root, file), 'utf8')).join('\n')
      for (const [, name = ''] of cell.matchAll(/`([A-Za-z_]+)`/g)) {
        names++
        assert.match(code, new RegExp(`\\b${name}\\b`), `${path} looks for ${name} in ${files.join(', ')}`)
      }
    }
  }
  assert.ok(names > 40, `only ${names} were found`)
})

test.run()
