// Charts of matplotlib as data.

import { afterAll, beforeAll, expect, test } from 'vitest'

import { output, sharedInterpreter } from './interpreters.js'

let sandbox
beforeAll(async () => {
  sandbox = await sharedInterpreter()
})
afterAll(() => sandbox?.kill())

/** Runs code that draws into `ax` of `fig`, and returns the chart that is shown. */
async function chart(code) {
  const head = "import matplotlib.pyplot as plt\nimport numpy as np\nplt.close('all')\nfig, ax = plt.subplots()"
  const execution = await sandbox.runCode(`${head}\n${code}\nplt.show()`)
  output(execution)
  expect(execution.results[0].chart).toBeDefined()
  return execution.results[0].chart
}

// interpreter: G1
test('bar', async () => {
  const bar = await chart(`
ax.bar(["Ann", "Bo", "Cy", "Di"], [100, 200, 300, 400], label="Books sold")
ax.set(xlabel="Authors", ylabel="Number of books sold", title="Book sales by author")
ax.legend()`)
  expect([bar.type, bar.title]).toEqual(['bar', 'Book sales by author'])
  expect([bar.x_label, bar.y_label, bar.x_unit, bar.y_unit]).toEqual(['Authors', 'Number of books sold', null, null])
  const parts = [['Ann', 100], ['Bo', 200], ['Cy', 300], ['Di', 400]]
  expect(bar.elements).toEqual(parts.map(([label, value]) => ({ label, value, group: 'Books sold' })))
})

// interpreter: G2
test('box', async () => {
  const box = await chart(`
ax.boxplot([[85, 90, 78, 92, 88], [40, 44, 46, 50, 52, 54, 76], [80, 84, 88, 94, 99]], patch_artist=True)
ax.set_xticklabels(["A", "B", "C"])
ax.set(xlabel="Class", ylabel="Score", title="Scores by class")`)
  expect(box).toMatchObject({ type: 'box_and_whisker', title: 'Scores by class', x_label: 'Class', y_label: 'Score' })
  const values = ({ label, min, first_quartile, median, third_quartile, max, outliers }) =>
    [label, min, first_quartile, median, third_quartile, max, outliers]
  expect(box.elements.map(values)).toEqual([
    ['A', 78, 85, 88, 90, 92, []],
    ['B', 40, 45, 50, 53, 54, [76]],
    ['C', 80, 84, 88, 94, 99, []],
  ])
})

// interpreter: G3
test('line with dates', async () => {
  const line = await chart(`
from datetime import datetime, timedelta
days = [datetime(2024, 9, 1) + timedelta(days=day) for day in range(100)]
x = np.linspace(0, 10, 100)
ax.plot(days, np.sin(x), label="sin(x)")
ax.plot(days, np.cos(x), label="cos(x)")
ax.set(xlabel="Time (s)", ylabel="Amplitude [Hz]", title="Waves")`)
  expect([line.type, line.title, line.x_unit, line.y_unit]).toEqual(['line', 'Waves', 's', 'Hz'])
  expect([line.x_scale, line.y_scale]).toEqual(['datetime', 'linear'])
  for (const tick of line.x_ticks) expect(Date.parse(tick)).not.toBeNaN()
  for (const tick of line.y_ticks) expect(typeof tick).toBe('number')
  for (const label of [...line.x_tick_labels, ...line.y_tick_labels]) expect(typeof label).toBe('string')
  expect(line.elements.map(({ label, points }) => [label, points.length])).toEqual([['sin(x)', 100], ['cos(x)', 100]])
  const points = line.elements.flatMap(({ points }) => points)
  expect(points.every(([x, y]) => typeof x === 'string' && typeof y === 'number')).toBe(true)
})

// interpreter: G4
test('logarithmic axis', async () => {
  const line = await chart(`
x = np.linspace(1, 100, 100)
ax.plot(x, np.exp(x / 20), label="growth")
ax.set_yscale("log")
ax.set(xlabel="X-axis", ylabel="Y-axis (log scale)", title="Growth")`)
  expect(line).toMatchObject({ type: 'line', y_scale: 'log', y_unit: 'log scale', x_scale: 'linear', x_unit: null })
})

// interpreter: G5
test('pie', async () => {
  const pie = await chart('ax.pie([90, 10], labels=["Yes", "No"])\nax.set_title("Agreement")')
  expect([pie.type, pie.title]).toEqual(['pie', 'Agreement'])
  const parts = pie.elements.map(({ label, angle, radius }) => [label, Math.round(angle), radius])
  expect(parts).toEqual([['Yes', 324, 1], ['No', 36, 1]])
})

// interpreter: G6
test('scatter', async () => {
  const scatter = await chart(`
ax.scatter(range(5), [1, 3, 2, 5, 4], label="Dataset 1")
ax.scatter(range(10), range(10), label="Dataset 2")`)
  expect([scatter.type, scatter.title]).toEqual(['scatter', null])
  const parts = scatter.elements.map(({ label, points }) => [label, points.length])
  expect(parts).toEqual([['Dataset 1', 5], ['Dataset 2', 10]])
})

// interpreter: G7
test('two sub-plots', async () => {
  const both = await chart(`
plt.close(fig)
fig, (left, right) = plt.subplots(1, 2)
left.bar(["A", "B"], [1, 2], label="Amounts")
left.set(title="Bars", xlabel="Name", ylabel="Amount")
right.plot([1, 2, 3], [4, 5, 6], label="Line")
right.set(title="Lines", xlabel="X", ylabel="Y")
fig.suptitle("Both")`)
  expect([both.type, both.title]).toEqual(['superchart', 'Both'])
  expect(both.elements.map(({ type, title }) => [type, title])).toEqual([['bar', 'Bars'], ['line', 'Lines']])
})

// interpreter: G8
test('categories and unknown types', async () => {
  const line = await chart('ax.plot([1, 2, 3], ["low", "mid", "high"], label="levels")')
  expect([line.type, line.y_scale]).toEqual(['line', 'categorical'])
  const unknown = await chart(`
ax.add_artist(plt.Circle((0, 0), 0.5))
ax.add_artist(plt.Circle((1, 1), 0.5))
ax.set_title("Circles")`)
  expect([unknown.type, unknown.title, unknown.elements]).toEqual(['unknown', 'Circles', []])
})
